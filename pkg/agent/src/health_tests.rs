//! A day in the life of a witness, in half seconds.

use super::*;

const X: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const STEP: Duration = Duration::from_millis(100);

fn name() -> Arc<str> {
    "x".into()
}

/// One node, which answers or does not, and the time.
struct Life {
    health: Health,
    start: Instant,
    now: Instant,
    asked: u32,
    /// What was told, with the seconds since the start.
    told: Vec<(f64, News)>,
}

impl Life {
    fn new(way: Way) -> Self {
        let now = Instant::now();
        let mut life = Self { health: Health::default(), start: now, now, asked: 0, told: Vec::new() };
        life.health.restore(&[], now);
        life.follow(way);
        life
    }

    fn follow(&mut self, way: Way) {
        self.health.follow(&[Watch { node: name(), way }], |_| true, self.now);
    }

    /// Lets time pass while the node answers at once or not at all.
    fn pass(&mut self, seconds: f64, answers: bool) {
        let until = self.now + Duration::from_secs_f64(seconds);
        while self.now < until {
            self.now += STEP;
            if self.health.next().is_none_or(|next| next > self.now) {
                continue;
            }
            let (questions, mut news) = self.health.due(self.now);
            for (node, address) in questions {
                self.asked += 1;
                if answers {
                    news.extend(self.health.answered(&node, address, self.now));
                }
            }
            let at = self.now.duration_since(self.start).as_secs_f64();
            self.told.extend(news.into_iter().map(|news| (at, news)));
        }
    }

    fn is_reported(&self) -> bool {
        self.health.text() == "x"
    }
}

#[test]
fn a_node_that_answers_is_asked_every_two_seconds() {
    let mut life = Life::new(Way::Probe(X));
    life.pass(100.0, true);
    assert_eq!(life.asked, 50);
    assert!(life.told.is_empty() && life.health.text().is_empty());
}

#[test]
fn who_stops_answering_is_reported_within_four_seconds() {
    // At any moment between two questions.
    for tenths in 0..20 {
        let mut life = Life::new(Way::Probe(X));
        let silent = 10.0 + f64::from(tenths) / 10.0;
        life.pass(silent, true);
        life.pass(10.0, false);
        let [(at, News::Unreachable(_, hold))] = &life.told[..] else { panic!("{:?}", life.told) };
        assert!(*at > silent + 1.4 && *at <= silent + 4.1, "{at} after {silent}");
        assert_eq!(*hold, HOLD);
        assert!(life.is_reported());
    }
}

#[test]
fn three_misses_are_none_and_a_late_answer_counts() {
    let mut life = Life::new(Way::Probe(X));
    for _ in 0..50 {
        life.pass(4.0, true);
        life.pass(1.4, false);
    }
    life.pass(4.0, true);
    // The answer to each question takes 1.8 s.
    for _ in 0..50 {
        life.pass(1.8, false);
        assert_eq!(life.health.answered("x", X, life.now), None);
    }
    assert!(life.told.is_empty(), "{:?}", life.told);
}

#[test]
fn who_never_answered_is_not_reported() {
    let mut life = Life::new(Way::Probe(X));
    life.pass(600.0, false);
    assert!(life.told.is_empty());
    assert!(life.asked < 310, "not asked more often than one who answers: {}", life.asked);
    // Nor one whose address is new.
    life.pass(10.0, true);
    life.follow(Way::Probe("10.0.0.2".parse().expect("an address")));
    life.pass(60.0, false);
    assert!(life.told.is_empty());
}

#[test]
fn a_report_stays_until_the_node_has_answered_for_a_minute_without_a_miss() {
    let mut life = Life::new(Way::Probe(X));
    life.pass(10.0, true);
    life.pass(10.0, false);
    life.pass(50.0, true);
    life.pass(2.0, false);
    life.pass(59.0, true);
    assert!(life.is_reported(), "a miss begins it anew");
    life.pass(5.0, true);
    assert!(!life.is_reported());
    assert_eq!(life.told.len(), 2, "{:?}", life.told);
}

#[test]
fn each_further_report_holds_twice_as_long_up_to_ten_minutes() {
    let mut life = Life::new(Way::Probe(X));
    life.pass(10.0, true);
    let mut holds = Vec::new();
    for _ in 0..7 {
        life.pass(10.0, false);
        let Some((_, News::Unreachable(_, hold))) = life.told.last() else { panic!("{:?}", life.told) };
        holds.push(hold.as_secs());
        life.pass(hold.as_secs_f64() + 4.0, true);
        assert!(!life.is_reported());
    }
    assert_eq!(holds, [60, 120, 240, 480, 600, 600, 600]);
    // Ten quiet minutes later all is forgotten.
    life.pass(601.0, true);
    life.pass(10.0, false);
    assert!(matches!(life.told.last(), Some((_, News::Unreachable(_, HOLD)))), "{:?}", life.told);
}

#[test]
fn a_leader_that_flaps_is_reported_once() {
    let mut life = Life::new(Way::Probe(X));
    life.pass(10.0, true);
    for _ in 0..30 {
        life.pass(5.0, false);
        life.pass(5.0, true);
    }
    assert!(life.is_reported());
    assert_eq!(life.told.len(), 1);
}

#[test]
fn who_cannot_be_asked_is_given_another_chance_with_time() {
    let mut life = Life::new(Way::Probe(X));
    life.pass(10.0, true);
    life.pass(10.0, false);
    // It leads no longer. As long as those who are closer report it, so do we.
    life.follow(Way::Keep);
    life.pass(1000.0, false);
    assert!(life.is_reported() && life.health.next().is_none(), "and nothing wakes us");
    let asked = life.asked;
    life.follow(Way::Wait);
    life.pass(59.0, false);
    assert!(life.is_reported());
    life.pass(2.0, false);
    assert!(!life.is_reported());
    assert_eq!(life.asked, asked);
    // It leads again, and still does not answer: it has the time that a tunnel takes, no more, and waits longer.
    life.follow(Way::Probe(X));
    let again = life.told.len();
    life.pass(9.0, false);
    assert_eq!(life.told.len(), again);
    life.pass(5.0, false);
    assert_eq!(life.told[again..].len(), 1);
    assert!(matches!(life.told[again].1, News::Unreachable(_, hold) if hold == 2 * HOLD));
}

#[test]
fn a_new_run_goes_on_with_the_reports_of_the_last() {
    let mut life = Life::new(Way::Wait);
    life.health = Health::default();
    life.health.restore(&[name(), "gone".into()], life.now);
    life.health.follow(&[Watch { node: name(), way: Way::Probe(X) }], |node| node == "x", life.now);
    assert_eq!(life.health.text(), "x");
    life.health.restore(&["later".into()], life.now);
    assert_eq!(life.health.text(), "x", "only at the start");
    life.pass(58.0, true);
    assert!(life.is_reported());
    life.pass(6.0, true);
    assert!(!life.is_reported());
}

#[test]
fn a_report_outlives_a_plan_that_does_not_know_it_yet() {
    let mut life = Life::new(Way::Probe(X));
    life.pass(10.0, true);
    life.pass(10.0, false);
    life.health.follow(&[], |_| true, life.now);
    assert!(life.is_reported());
    life.health.follow(&[], |_| false, life.now);
    assert!(!life.is_reported(), "the node is gone");
}

#[test]
fn no_more_is_reported_than_may_be() {
    let now = Instant::now();
    let mut health = Health::default();
    let watches: Vec<Watch> =
        (0..100).map(|n| Watch { node: format!("n{n:03}").into(), way: Way::Probe(X) }).collect();
    health.follow(&watches, |_| true, now);
    for (node, address) in health.due(now).0 {
        health.answered(&node, address, now);
    }
    for step in 1..100 {
        health.due(now + RETRY * step);
    }
    assert_eq!(health.text().split(',').count(), REPORTS);
}
