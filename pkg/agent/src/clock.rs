//! The time that check-ins are measured with: this machine's clock, unless that jumps and the check-ins of others
//! say that it was right before.

use std::time::Instant;

use tracing::{info, warn};

/// What a clock may be off between two looks without having jumped, in seconds.
const STEADY: u64 = 2;
/// What a check-in that was just heard of may be off the right time, in seconds: a list brings one that is half a
/// minute old.
const NEAR: u64 = 45;

/// A clock that does not jump by itself.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// A moment and its time in seconds since 1970.
    base: Option<(Instant, u64)>,
    jumped: bool,
}

impl Clock {
    /// The time, given a moment and what the machine's clock says at that moment. `alone`: nobody else has check-ins
    /// to compare with, so the machine is believed.
    pub(crate) fn now(&mut self, moment: Instant, machine: u64, alone: bool) -> u64 {
        let steady = self.steady(moment).unwrap_or(machine);
        if alone || steady.abs_diff(machine) <= STEADY {
            self.jumped = false;
            self.base = Some((moment, machine));
            return machine;
        }
        if !self.jumped {
            self.jumped = true;
            warn!(
                machine,
                expected = steady,
                "Clock has jumped; the check-ins of others will tell which is right"
            );
        }
        steady
    }

    /// Takes a check-in that was just heard of as a sign of the right time. Tells whether the time is another now.
    pub(crate) fn compare(&mut self, last_seen: i64, moment: Instant, machine: u64) -> bool {
        let Some(steady) = self.steady(moment).filter(|_| self.jumped) else { return false };
        let off = |time: u64| i128::from(time).abs_diff(i128::from(last_seen));
        if off(machine) > u128::from(NEAR) || off(machine) >= off(steady) {
            return false;
        }
        info!(now = machine, before = steady, "Clock is followed");
        self.jumped = false;
        self.base = Some((moment, machine));
        true
    }

    /// The time as it is if nobody has changed the clock.
    fn steady(&self, moment: Instant) -> Option<u64> {
        self.base.map(|(since, time)| time.saturating_add(moment.saturating_duration_since(since).as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: u64 = 3600;
    const START: u64 = 1_767_225_600;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_steady_clock_is_followed_through_its_drift() {
        let (mut clock, start) = (Clock::default(), Instant::now());
        // 5 % fast: nobody jumps.
        for step in 0..1000 {
            let machine = START + step * 21;
            assert_eq!(clock.now(at(start, step * 20), machine, false), machine);
        }
    }

    #[test]
    fn a_wrong_jump_is_not_followed_while_others_check_in() {
        for jumped in [START + HOUR, START - HOUR, START + 20] {
            let (mut clock, start) = (Clock::default(), Instant::now());
            clock.now(start, START, false);
            for second in 1..300 {
                let (moment, machine) = (at(start, second), jumped + second);
                let others = i64::try_from(START + second).expect("small");
                assert!(!clock.compare(others, moment, machine));
                assert_eq!(clock.now(moment, machine, false), START + second);
            }
            // Corrected again: nothing has happened.
            assert_eq!(clock.now(at(start, 300), START + 300, false), START + 300);
        }
    }

    #[test]
    fn a_correction_is_followed_once_others_agree() {
        for right in [START + HOUR, START - HOUR, START + 20] {
            let (mut clock, start) = (Clock::default(), Instant::now());
            clock.now(start, START, false);
            let moment = at(start, 10);
            assert_eq!(clock.now(moment, right, false), START + 10);
            let others = i64::try_from(right).expect("small") - 1;
            assert!(!clock.compare(7, moment, right), "nobody's clock");
            assert!(clock.compare(others, moment, right));
            assert_eq!(clock.now(moment, right, false), right);
        }
    }

    #[test]
    fn who_is_alone_believes_the_machine() {
        let (mut clock, start) = (Clock::default(), Instant::now());
        clock.now(start, START, true);
        assert_eq!(clock.now(at(start, 1), START + HOUR, true), START + HOUR);
    }
}
