//! Tests of what counts as deleted, and of what the agent is told.

use std::fs;

use super::*;
use crate::scan;

const SECOND: Duration = Duration::from_secs(1);

/// A directory and the store of what was last read there.
struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    now: Instant,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let mut fixture = Self {
            dir: tempfile::tempdir().expect("a directory"),
            store: Store::default(),
            now: Instant::now(),
        };
        files.iter().for_each(|(path, text)| fixture.write(path, text));
        fixture.look(Duration::ZERO);
        fixture
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.dir.path().join(path)).expect("removed");
    }

    /// Looks again after a time.
    fn look(&mut self, after: Duration) -> Vec<Event> {
        self.now += after;
        let found = scan::scan(self.dir.path()).map_err(|e| e.to_string());
        let known: Vec<_> = self.store.paths().cloned().collect();
        for path in known {
            if !found.as_ref().is_ok_and(|f| f.files.contains_key(&path)) {
                self.store.missing(&path, self.now);
            }
        }
        if let Ok(found) = &found {
            for path in found.files.keys() {
                let (text, stamp) = scan::read(&self.dir.path().join(path)).expect("readable");
                self.store.read(path, &text, stamp, found.directories[OsStr::new("")]);
            }
        }
        self.store.settle(self.dir.path(), found.as_ref().map_err(String::as_str), &[], self.now);
        self.store.events()
    }
}

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

fn peer(name: &str, key: &str) -> String {
    format!(
        "---\napiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {{name: {name}}}\nspec: {{publicKey: {key}}}\n"
    )
}

/// Events in short: `+n a`, `-p x`, `n[a b] 1` for a list of two and one finding, `up`, `down`.
fn short(events: &[Event]) -> Vec<String> {
    let list = |names: Vec<&str>, findings: usize| format!("[{}] {findings}", names.join(" "));
    events
        .iter()
        .map(|event| match event {
            Event::Nodes(nodes, f) => {
                format!("n{}", list(nodes.iter().map(|n| n.metadata.name.as_str()).collect(), f.len()))
            }
            Event::Peers(peers, f) => {
                format!("p{}", list(peers.iter().map(|p| p.metadata.name.as_str()).collect(), f.len()))
            }
            Event::NodeApplied(n) => format!("+n {}", n.metadata.name),
            Event::NodeDeleted(n) => format!("-n {n}"),
            Event::PeerApplied(p) => format!("+p {}", p.metadata.name),
            Event::PeerDeleted(p) => format!("-p {p}"),
            Event::Malformed(_, name, _) => format!("? {name}"),
            Event::Watch(_, WatchState::Up) => "up".to_owned(),
            Event::Watch(_, WatchState::Down(_)) => "down".to_owned(),
        })
        .collect()
}

#[test]
fn tells_everything_once_and_then_what_changed() {
    let mut f = Fixture::new(&[("a.yaml", &node("a"))]);
    f.store.told = None;
    assert_eq!(short(&f.look(SECOND)), ["n[a] 0", "p[] 0"]);
    assert!(f.look(SECOND).is_empty());
    f.write("p/x.yaml", &(peer("x", "k1") + &peer("y", "k1")));
    assert_eq!(short(&f.look(SECOND)), ["+p x", "+p y"]);
    f.write("p/x.yaml", &(peer("x", "k2") + &peer("y", "k1")));
    assert_eq!(short(&f.look(SECOND)), ["+p x"]);
    f.write("p/x.yaml", &peer("y", "k1"));
    assert_eq!(short(&f.look(SECOND)), ["-p x"]);
}

#[test]
fn a_deleted_file_takes_its_objects_along_after_a_moment() {
    let mut f = Fixture::new(&[("a.yaml", &node("a")), ("p/x.yaml", &peer("x", "k"))]);
    f.remove("p/x.yaml");
    assert!(f.look(SECOND / 10).is_empty());
    assert_eq!(short(&f.look(SECOND * 2)), ["-p x"]);
    f.write("p/x.yaml", &peer("x", "k"));
    f.look(SECOND);
    fs::remove_dir_all(f.dir.path().join("p")).expect("removed");
    assert!(f.look(SECOND).is_empty());
    assert_eq!(short(&f.look(SECOND * 2)), ["-p x"]);
}

#[test]
fn a_renamed_file_changes_nothing() {
    let mut f = Fixture::new(&[("b.yaml", &node("a")), ("z.yaml", &node("z"))]);
    fs::rename(f.dir.path().join("b.yaml"), f.dir.path().join("c.yaml")).expect("renamed");
    assert!(f.look(SECOND / 10).is_empty());
    assert!(f.look(SECOND * 2).is_empty());
    assert_eq!(f.store.paths().count(), 2);
}

#[test]
fn a_directory_that_lost_everything_keeps_everything() {
    let mut f = Fixture::new(&[("a.yaml", &node("a")), ("p/x.yaml", &peer("x", "k"))]);
    let root = f.dir.path().to_owned();
    let away = root.with_extension("away");
    for gone_altogether in [true, false] {
        fs::rename(&root, &away).expect("moved");
        if !gone_altogether {
            fs::create_dir(&root).expect("made");
        }
        let events = short(&f.look(SECOND));
        assert_eq!(events, ["n[a] 1", "down", "down"], "a finding, and nothing is lost");
        assert!(f.look(SECOND * 3600).is_empty());
        // It comes back one file after the other.
        if gone_altogether {
            fs::create_dir(&root).expect("made");
        }
        fs::rename(away.join("a.yaml"), root.join("a.yaml")).expect("moved");
        assert_eq!(short(&f.look(SECOND)), ["n[a] 0", "up", "up"]);
        assert!(f.look(SECOND * 20).is_empty());
        fs::rename(away.join("p"), root.join("p")).expect("moved");
        assert!(f.look(SECOND * 3600).is_empty());
        fs::remove_dir(&away).expect("empty");
    }
    // What did not come back was deleted meanwhile.
    f.remove("a.yaml");
    f.remove("p/x.yaml");
    f.look(SECOND);
    f.write("a.yaml", &node("a"));
    assert_eq!(short(&f.look(SECOND)), ["n[a] 0", "up", "up"]);
    assert_eq!(short(&f.look(SECOND * 31)), ["-p x"]);
}

#[test]
fn an_unmounted_directory_keeps_its_objects() {
    let mut f = Fixture::new(&[("a.yaml", &node("a")), ("p/x.yaml", &peer("x", "k"))]);
    let source = f.store.sources.get_mut(OsStr::new("p/x.yaml")).expect("known");
    source.device += 1;
    f.remove("p/x.yaml");
    f.look(SECOND);
    let events = f.look(SECOND * 3600);
    assert_eq!(short(&events), ["n[a] 1"]);
    assert!(matches!(&events[0], Event::Nodes(_, f) if f[0].object == "File/p/x.yaml"));
}

#[test]
fn what_cannot_be_read_keeps_its_last_objects() {
    let both = peer("x", "k") + &peer("y", "k");
    let broken = [
        ("half", peer("x", "k") + "---\napiVersion: [", "n[a] 1"),
        ("empty", String::new(), "n[a] 1"),
        ("wrong", peer("x", "k") + &peer("y", "[]"), "p[x y] 1"),
    ];
    for (what, text, wanted) in broken {
        let mut f = Fixture::new(&[("a.yaml", &node("a")), ("p.yaml", &both)]);
        f.write("p.yaml", &text);
        assert_eq!(short(&f.look(SECOND)), [wanted], "{what}");
        f.write("p.yaml", &both);
        assert_eq!(short(&f.look(SECOND)), [wanted.replace('1', "0")], "{what}");
        f.write("p.yaml", "# nothing any more\n");
        assert_eq!(short(&f.look(SECOND)), ["-p x", "-p y"], "{what}");
    }
}

#[test]
fn the_first_file_wins() {
    let mut f = Fixture::new(&[
        ("a.yaml", &node("a")),
        ("b/p.yaml", &peer("x", "first")),
        ("b0.yaml", &peer("x", "second")),
    ]);
    f.store.told = None;
    let events = f.look(SECOND);
    assert_eq!(short(&events), ["n[a] 0", "p[x] 1"]);
    let Event::Peers(peers, findings) = &events[1] else { panic!("{events:?}") };
    assert_eq!(peers[0].spec.public_key, "first", "in byte order / is before 0");
    assert_eq!((findings[0].object.as_str(), findings[0].value.as_str()), ("Peer/x", "b0.yaml"));
    f.remove("b/p.yaml");
    assert_eq!(short(&f.look(SECOND)), ["p[x] 0"]);
    // Twice in one file: the first as well.
    f.write("b0.yaml", &(peer("x", "third") + &peer("x", "fourth")));
    let events = f.look(SECOND * 5);
    assert!(
        matches!(&events[0], Event::Peers(p, f) if p[0].spec.public_key == "third" && f.len() == 1),
        "{events:?}"
    );
}
