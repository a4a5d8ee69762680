//! What network policies are about, in a real directory, as an agent and an editor see it.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use kilo_agent::{Backend, Kind, PolicyEvent, WatchState};
use kilo_file::FileBackend;
use tokio::sync::mpsc;

struct Fixture {
    dir: tempfile::TempDir,
    events: mpsc::Receiver<PolicyEvent>,
}

impl Fixture {
    fn start(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("state");
        fs::create_dir(&root).expect("made");
        for (path, text) in files {
            fs::write(root.join(path), text).expect("written");
        }
        let backend = FileBackend::new(&root);
        let (sender, events) = mpsc::channel(64);
        tokio::spawn(async move { backend.run_policy(sender).await });
        Self { dir, events }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("state").join(path)
    }

    /// The next event in short: `+Pod n/p`, `-Pod n/p`, `Pod…`, `Pod.`, `Pod up`, `Pod down`.
    async fn next(&mut self) -> String {
        let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
        match event.expect("an event in 20 s").expect("the backend runs") {
            PolicyEvent::Restarted(kind) => format!("{}…", kind.name()),
            PolicyEvent::Synced(kind) => format!("{}.", kind.name()),
            PolicyEvent::Applied(kind, object) => {
                assert!(!object.to_string().contains("managedFields"), "{object}");
                let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
                format!(
                    "+{} {}/{} {}",
                    kind.name(),
                    text("namespace"),
                    text("name"),
                    object["spec"]["nodeName"]
                )
            }
            PolicyEvent::Deleted(kind, namespace, name) => format!("-{} {namespace}/{name}", kind.name()),
            PolicyEvent::Watch(kind, WatchState::Up) => format!("{} up", kind.name()),
            PolicyEvent::Watch(kind, WatchState::Down(_)) => format!("{} down", kind.name()),
        }
    }

    async fn take(&mut self, number: usize) -> Vec<String> {
        let mut taken = Vec::new();
        for _ in 0..number {
            taken.push(self.next().await);
        }
        taken
    }

    async fn quiet(&mut self, time: Duration) {
        if let Ok(event) = tokio::time::timeout(time, self.events.recv()).await {
            panic!("{event:?}");
        }
    }
}

fn pod(name: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n, managedFields: [{{manager: m}}]}}\nspec: {{nodeName: {node}}}\n"
    )
}

const OTHERS: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: n}\nspec: {podSelector: {}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s-1, namespace: n}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: a}\n";

#[tokio::test(flavor = "multi_thread")]
async fn all_kinds_then_each_change() {
    let mut fixture =
        Fixture::start(&[("pods.yaml", &(pod("p", "a") + &pod("q", "a"))), ("others.yaml", OTHERS)]);
    let first = [
        "Namespace…",
        "+Namespace /n null",
        "Pod…",
        "+Pod n/p \"a\"",
        "+Pod n/q \"a\"",
        "NetworkPolicy…",
        "+NetworkPolicy n/deny null",
        "Service…",
        "+Service /s null",
        "EndpointSlice…",
        "+EndpointSlice n/s-1 null",
        "Namespace.",
        "Pod.",
        "NetworkPolicy.",
        "Service.",
        "EndpointSlice.",
    ];
    assert_eq!(fixture.take(first.len()).await, first);

    fs::write(fixture.path("pods.yaml"), pod("p", "b")).expect("written");
    assert_eq!(fixture.take(2).await, ["-Pod n/q", "+Pod n/p \"b\""]);

    // A Service without namespace is in `default`.
    fs::remove_file(fixture.path("others.yaml")).expect("removed");
    let mut gone = fixture.take(4).await;
    gone.sort();
    assert_eq!(
        gone,
        ["-EndpointSlice n/s-1", "-Namespace /n", "-NetworkPolicy n/deny", "-Service default/s"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_keeps_its_last_objects() {
    let mut fixture = Fixture::start(&[("pods.yaml", &pod("p", "a")), ("others.yaml", OTHERS)]);
    fixture.take(15).await;
    // Half a file, an empty one, a broken document beside a good one.
    for text in ["apiVersion: v1\nkind: Pod\nmetadata: {name: p, names", "", "\n \n"] {
        fs::write(fixture.path("pods.yaml"), text).expect("written");
        fixture.quiet(Duration::from_millis(2500)).await;
    }
    fs::write(fixture.path("pods.yaml"), format!("{}---\na: [\n", pod("q", "a"))).expect("written");
    assert_eq!(fixture.next().await, "+Pod n/q \"a\"");
    // The directory goes: everything stays.
    fs::rename(fixture.path(""), fixture.dir.path().join("away")).expect("renamed");
    let down = fixture.take(5).await;
    assert!(down.iter().all(|event| event.ends_with(" down")), "{down:?}");
    fixture.quiet(Duration::from_millis(1500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_half_a_file_ends_no_list() {
    let mut fixture = Fixture::start(&[
        ("pods.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, na"),
        ("o.yaml", OTHERS),
    ]);
    let first = fixture.take(9).await;
    assert!(first.iter().all(|event| !event.ends_with('.')), "{first:?}");
    fixture.quiet(Duration::from_secs(1)).await;
    fs::write(fixture.path("pods.yaml"), pod("p", "a")).expect("written");
    assert_eq!(fixture.next().await, "+Pod n/p \"a\"");
    let kinds = [Kind::Namespace, Kind::Pod, Kind::NetworkPolicy, Kind::Service, Kind::EndpointSlice];
    assert_eq!(fixture.take(5).await, kinds.map(|kind| format!("{}.", kind.name())));
}
