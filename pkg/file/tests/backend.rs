//! The backend on a real directory, as an agent and an editor see it.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use kilo_agent::{Backend, BackendError, Event, NodePatch, WatchKind, WatchState};
use kilo_file::FileBackend;
use tokio::sync::mpsc;

const SEEN: &str = "kilo.squat.ai/last-seen";

struct Fixture {
    dir: tempfile::TempDir,
    backend: FileBackend,
    events: mpsc::Receiver<Event>,
}

impl Fixture {
    /// Starts on these files; the first two events have not been taken.
    fn start(files: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("mesh");
        fs::create_dir(&root).expect("made");
        for (path, text) in files {
            write(&root.join(path), text);
        }
        let backend = FileBackend::new(&root);
        let (sender, events) = mpsc::channel(64);
        let running = backend.clone();
        tokio::spawn(async move { running.run(sender).await });
        Self { dir, backend, events }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("mesh")
    }

    fn write(&self, path: &str, text: &str) {
        write(&self.root().join(path), text);
    }

    async fn next(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(15), self.events.recv())
            .await
            .expect("an event in 15 s")
            .expect("the backend runs")
    }

    async fn started(&mut self) -> (usize, usize) {
        match (self.next().await, self.next().await) {
            (Event::Nodes(nodes, _), Event::Peers(peers, _)) => (nodes.len(), peers.len()),
            other => panic!("{other:?}"),
        }
    }

    async fn quiet(&mut self, time: Duration) {
        if let Ok(event) = tokio::time::timeout(time, self.events.recv()).await {
            panic!("{event:?}");
        }
    }

    async fn peer_applied(&mut self, name: &str) {
        let event = self.next().await;
        assert!(
            matches!(&event, Event::PeerApplied(peer) if peer.metadata.name == name),
            "{name}: {event:?}"
        );
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, text).expect("written");
}

fn node(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: 10.2.0.0/24}}\n")
}

fn peer(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: kilo.squat.ai/v1alpha1\nkind: Peer\nmetadata: {{name: {name}}}\nspec: {{allowedIPs: [{ip}/32], publicKey: k}}\n---\n"
    )
}

fn seen(value: &str) -> NodePatch {
    NodePatch::from([(SEEN.to_owned(), Some(value.to_owned()))])
}

#[tokio::test]
async fn tells_all_and_then_each_change_soon() {
    let mut f = Fixture::start(&[
        ("nodes/a.yaml", node("a")),
        ("p.json", "{\"kind\":\"List\",\"apiVersion\":\"v1\"}".into()),
    ]);
    assert_eq!(f.started().await, (1, 0));
    // In a directory that is not there yet, two levels deep.
    f.write("clients/home/x.yaml", &peer("x", "10.5.0.1"));
    f.peer_applied("x").await;
    // In place, as `cat >` does; and by rename, as editors do.
    let began = Instant::now();
    f.write("clients/home/x.yaml", &peer("x", "10.5.0.2"));
    f.peer_applied("x").await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    f.write("clients/home/.x.yaml.swp", &peer("x", "10.5.0.3"));
    fs::rename(f.root().join("clients/home/.x.yaml.swp"), f.root().join("clients/home/x.yaml"))
        .expect("renamed");
    f.peer_applied("x").await;
    // A directory that was moved is still watched, under its new name.
    fs::rename(f.root().join("clients"), f.root().join("peers")).expect("renamed");
    f.quiet(Duration::from_millis(1500)).await;
    f.write("peers/home/x.yaml", &peer("x", "10.5.0.4"));
    f.peer_applied("x").await;
    fs::remove_file(f.root().join("peers/home/x.yaml")).expect("removed");
    assert!(matches!(f.next().await, Event::PeerDeleted(name) if name == "x"));
}

#[tokio::test]
async fn half_a_file_is_never_told() {
    let mut f = Fixture::start(&[("a.yaml", node("a"))]);
    f.started().await;
    let text = peer("x", "10.5.0.1") + &peer("y", "10.5.0.2");
    let mut file = fs::File::create(f.root().join("p.yaml")).expect("made");
    // Each piece ends where YAML might as well.
    for piece in text.split_inclusive('\n') {
        file.write_all(piece.as_bytes()).expect("written");
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert!(f.events.try_recv().is_err(), "it is not closed yet");
    drop(file);
    f.peer_applied("x").await;
    f.peer_applied("y").await;
    f.quiet(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn writes_its_own_node_and_hears_of_it() {
    let mut f = Fixture::start(&[("all.yaml", node("b") + "---\n" + &node("c"))]);
    f.started().await;
    f.backend.patch_node("a", &seen("1")).await.expect("made");
    assert!(matches!(f.next().await, Event::NodeApplied(n) if n.metadata.annotations[SEEN] == "1"));
    f.backend.patch_node("a", &seen("2")).await.expect("written");
    assert!(matches!(f.next().await, Event::NodeApplied(n) if n.metadata.annotations[SEEN] == "2"));
    f.backend.patch_node("a", &seen("2")).await.expect("nothing to do");
    // Two patches in a row, before the first was heard of.
    f.backend.patch_node("d", &seen("1")).await.expect("made");
    f.backend.patch_node("d", &seen("2")).await.expect("written");
    let before = fs::read(f.root().join("all.yaml")).expect("there");
    let error = f.backend.patch_node("b", &seen("1")).await.expect_err("refused");
    let BackendError::Failed { action, source } = error else { panic!("{error:?}") };
    assert_eq!(action, "patching node b");
    assert!(
        source.to_string().contains("all.yaml") && source.to_string().contains("nodes/b.yaml"),
        "{source}"
    );
    assert_eq!(fs::read(f.root().join("all.yaml")).expect("there"), before);
    assert_eq!(fs::read_dir(f.root().join("nodes")).expect("listed").count(), 2);
}

#[tokio::test]
async fn a_wiped_directory_is_not_written_to() {
    let mut f = Fixture::start(&[("nodes/a.yaml", node("a")), ("p.yaml", peer("x", "10.5.0.1"))]);
    f.started().await;
    fs::remove_dir_all(f.root()).expect("removed");
    assert!(
        matches!(f.next().await, Event::Nodes(nodes, findings) if nodes.len() == 1 && findings.len() == 1)
    );
    // Last: a list says that its watch is up.
    assert!(matches!(f.next().await, Event::Watch(WatchKind::Nodes, WatchState::Down(_))));
    assert!(matches!(f.next().await, Event::Watch(WatchKind::Peers, WatchState::Down(_))));
    let error = f.backend.patch_node("a", &seen("1")).await.expect_err("refused");
    assert!(matches!(error, BackendError::Failed { .. }), "{error:?}");
    fs::create_dir(f.root()).expect("made");
    tokio::time::sleep(Duration::from_secs(3)).await;
    while let Ok(event) = f.events.try_recv() {
        // The reason is another one now, and all is still there.
        assert!(!matches!(&event, Event::Nodes(nodes, _) if nodes.is_empty()), "{event:?}");
        assert!(!matches!(&event, Event::PeerDeleted(_) | Event::Peers(..)), "{event:?}");
    }
    assert!(f.backend.patch_node("a", &seen("1")).await.is_err());
    assert_eq!(fs::read_dir(f.root()).expect("listed").count(), 0);
    f.write("nodes/a.yaml", &node("a"));
    f.write("p.yaml", &peer("x", "10.5.0.1"));
    assert!(
        matches!(f.next().await, Event::Nodes(nodes, findings) if nodes.len() == 1 && findings.is_empty())
    );
    assert!(matches!(f.next().await, Event::Watch(WatchKind::Nodes, WatchState::Up)));
    assert!(matches!(f.next().await, Event::Watch(WatchKind::Peers, WatchState::Up)));
    f.backend.patch_node("a", &seen("1")).await.expect("written");
}

#[tokio::test]
async fn waits_for_a_directory_and_holds_for_half_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("later");
    let backend = FileBackend::new(&root);
    let (sender, mut events) = mpsc::channel(64);
    tokio::spawn(async move { backend.run(sender).await });
    let down = events.recv().await.expect("an event");
    assert!(matches!(&down, Event::Watch(_, WatchState::Down(why)) if why.contains("later")), "{down:?}");
    events.recv().await.expect("the same for Peers");
    write(&dir.path().join("new/a.yaml"), &node("a"));
    write(&dir.path().join("new/p.yaml"), "apiVersion: [");
    fs::rename(dir.path().join("new"), &root).expect("renamed");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(events.try_recv().is_err(), "one file is not whole");
    write(&root.join("p.yaml"), &peer("x", "10.5.0.1"));
    let mut told = Vec::new();
    while told.len() < 4 {
        told.push(events.recv().await.expect("an event"));
    }
    assert!(matches!(&told[0], Event::Nodes(nodes, f) if nodes.len() == 1 && f.is_empty()), "{told:?}");
    assert!(matches!(&told[1], Event::Peers(peers, _) if peers.len() == 1), "{told:?}");
    assert!(told[2..].iter().all(|e| matches!(e, Event::Watch(_, WatchState::Up))), "{told:?}");
}

#[tokio::test]
async fn a_broken_file_does_not_hold_for_ever() {
    let mut f = Fixture::start(&[("a.yaml", node("a")), ("p.yaml", peer("x", "10.5.0.1") + "a: [")]);
    let began = Instant::now();
    let event = f.next().await;
    assert!(
        matches!(&event, Event::Nodes(nodes, findings) if nodes.len() == 1 && findings[0].object == "File/p.yaml"),
        "{event:?}"
    );
    assert!(matches!(f.next().await, Event::Peers(peers, _) if peers.len() == 1));
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn follows_a_mounted_config_map() {
    // Nothing runs before the first `await`.
    let mut f =
        Fixture::start(&[("..1/p.yaml", peer("x", "10.5.0.1")), ("..2/p.yaml", peer("x", "10.5.0.2"))]);
    let root = f.root();
    symlink("..1", root.join("..data")).expect("linked");
    symlink("..data/p.yaml", root.join("p.yaml")).expect("linked");
    assert_eq!(f.started().await, (0, 1));
    let began = Instant::now();
    symlink("..2", root.join("..data_tmp")).expect("linked");
    fs::rename(root.join("..data_tmp"), root.join("..data")).expect("renamed");
    assert!(matches!(f.next().await, Event::PeerApplied(p) if p.spec.allowed_ips == ["10.5.0.2/32"]));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
