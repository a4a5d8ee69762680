//! Tests of writing.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const KEY: &str = "kilo.squat.ai/last-seen";

fn changes(value: &str) -> NodePatch {
    NodePatch::from([(KEY.to_owned(), Some(value.to_owned()))])
}

fn tree(file: &Path) -> Value {
    read_trees("t", &fs::read(file).expect("a file")).pop().expect("a document").expect("readable")
}

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        fs::write(&file, text).expect("written");
        file
    }

    fn patch(&self, file: &Path, changes: &NodePatch) -> Result<bool, WriteError> {
        patch(self.dir.path(), file, "a", changes)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .expect("listed")
            .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

const ODD: &str = r#"# mine
apiVersion: v1
kind: Node
metadata:
  name: a
  labels: {topology.kubernetes.io/region: eu}
  annotations:
    kilo.squat.ai/location: "25"
    kilo.squat.ai/leader: ""
    example.com/odd: "yes: #no\n\ttab 'and' \"quotes\" é"
    example.com/on: "on"
    example.com/null: "null"
    example.com/long: "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    kilo.squat.ai/discovered-endpoints: '{"k=":{"IP":"1.2.3.4","Port":51820,"Zone":""}}'
  ownerThing: {deep: [1, -2, 3.5, true, null, "0x10", "1e3", " lead", "trail ", "-", "a: b"]}
spec: {podCIDR: 10.2.0.0/24, futureField: [a, {b: c}]}
status: {capacity: {cpu: 4}}
"#;

#[test]
fn changes_annotations_and_nothing_else() {
    for name in ["a.yaml", "a.yml", "a.json"] {
        let fixture = Fixture::new();
        let before = read_trees("t", ODD.as_bytes()).pop().expect("a document").expect("readable");
        let text = if name.ends_with("json") { before.to_string() } else { ODD.to_owned() };
        let file = fixture.file(name, &text);
        let mut change = changes("17");
        change.insert("kilo.squat.ai/leader".to_owned(), None);
        change.insert("kilo.squat.ai/endpoint".to_owned(), Some("[fd00::1]:51820".to_owned()));
        assert!(fixture.patch(&file, &change).expect("written"));
        let mut wanted = before;
        let annotations = wanted["metadata"]["annotations"].as_object_mut().expect("a map");
        annotations.remove("kilo.squat.ai/leader");
        annotations.insert(KEY.to_owned(), json!("17"));
        annotations.insert("kilo.squat.ai/endpoint".to_owned(), json!("[fd00::1]:51820"));
        assert_eq!(tree(&file), wanted, "{name}");
        let inode = fs::metadata(&file).expect("a file").ino();
        assert!(!fixture.patch(&file, &change).expect("nothing to do"), "{name}");
        assert_eq!(fs::metadata(&file).expect("a file").ino(), inode);
        assert_eq!(fixture.names(), [name], "no temporary file is left");
    }
}

#[test]
fn keeps_mode_and_link() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let fixture = Fixture::new();
    let file = fixture.file("real.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
    let link = fixture.dir.path().join("link.yaml");
    symlink("real.yaml", &link).expect("linked");
    assert!(fixture.patch(&link, &changes("1")).expect("written"));
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o640);
    assert_eq!(tree(&file)["metadata"]["annotations"][KEY], "1");
}

#[test]
fn a_node_without_annotations_gets_some_and_loses_the_last() {
    let fixture = Fixture::new();
    for text in
        ["metadata: {name: a}", "metadata: {name: a, annotations: }", "metadata: {name: a, annotations: {}}"]
    {
        let file = fixture.file("a.yaml", &format!("apiVersion: v1\nkind: Node\n{text}\n"));
        let removal = NodePatch::from([(KEY.to_owned(), None)]);
        assert!(!fixture.patch(&file, &removal).expect("nothing to do"), "{text}");
        assert!(fixture.patch(&file, &changes("1")).expect("written"));
        assert!(fixture.patch(&file, &removal).expect("written"));
        assert_eq!(tree(&file)["metadata"], json!({"name": "a"}));
    }
}

#[test]
fn never_touches_a_file_with_more_in_it() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n";
    let shared = [
        format!("{node}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\n"),
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: b}}\n---\n{node}"),
        "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Node, metadata: {name: a}}]\n".to_owned(),
    ];
    for text in shared {
        let fixture = Fixture::new();
        let file = fixture.file("all.yaml", &text);
        let error = fixture.patch(&file, &changes("1")).expect_err("refused");
        let message = error.to_string();
        assert!(matches!(error, WriteError::Shared { .. }), "{error:?}");
        assert!(message.contains("all.yaml") && message.contains("nodes/a.yaml"), "{message}");
        assert_eq!(fs::read_to_string(&file).expect("there"), text);
    }
    let fixture = Fixture::new();
    let other = "apiVersion: v1\nkind: Node\nmetadata: {name: b}\n";
    let file = fixture.file("b.yaml", other);
    assert!(matches!(fixture.patch(&file, &changes("1")), Err(WriteError::Unreadable { .. })));
    assert_eq!(fs::read_to_string(&file).expect("there"), other);
}

#[test]
fn waits_for_a_file_that_is_half_written() {
    let fixture = Fixture::new();
    let file = fixture.file("a.yaml", "apiVersion: v1\nkind: No");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            fs::write(
                &file,
                "apiVersion: v1\nkind: Node\nmetadata: {name: a}\nspec: {podCIDR: 10.0.0.0/24}\n",
            )
        });
        assert!(fixture.patch(&file, &changes("1")).expect("written"));
    });
    assert_eq!(tree(&file)["spec"]["podCIDR"], "10.0.0.0/24");
}

#[test]
fn creates_a_node_but_never_over_a_file() {
    let fixture = Fixture::new();
    create(fixture.dir.path(), "a", &changes("1")).expect("made");
    let file = own_file(fixture.dir.path(), "a");
    assert_eq!(tree(&file)["metadata"], json!({"name": "a", "annotations": {KEY: "1"}}));
    let before = fs::read(&file).expect("there");
    assert!(matches!(create(fixture.dir.path(), "a", &changes("2")), Err(WriteError::Occupied(_))));
    assert_eq!(fs::read(&file).expect("there"), before);
    assert_eq!(fs::read_dir(fixture.dir.path().join("nodes")).expect("listed").count(), 1);
}

/// Ends the other thread when a check fails, too.
struct StopOnDrop<'f>(&'f AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A person saves the file again and again, by rename or in place, while the agent checks in: the last thing
/// that was saved is in the file at the end, and the agent's annotation as well.
#[test]
fn no_edit_is_lost() {
    for in_place in [false, true] {
        let fixture = Fixture::new();
        let text =
            |n: u32| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: a}}\nspec: {{edit: {n}}}\n");
        let file = fixture.file("a.yaml", &text(0));
        let stop = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let agent = scope.spawn(|| {
                let (mut written, mut n) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    written += usize::from(fixture.patch(&file, &changes(&n.to_string())).unwrap_or(false));
                }
                written
            });
            let ending = StopOnDrop(&stop);
            for n in 1..150 {
                if in_place {
                    fs::write(&file, text(n)).expect("saved");
                } else {
                    let temporary = fixture.dir.path().join("a.yaml~");
                    fs::write(&temporary, text(n)).expect("saved");
                    fs::rename(&temporary, &file).expect("saved");
                }
                // What was saved stays, whatever the agent does at the same moment.
                std::thread::sleep(Duration::from_millis(u64::from(n % 23)));
                let seen = (0..50).find_map(|_| {
                    let trees = read_trees("t", &fs::read(&file).ok()?);
                    let edit = trees.first()?.as_ref().ok()?["spec"]["edit"].as_u64()?;
                    (edit == u64::from(n)).then_some(edit).or_else(|| {
                        std::thread::sleep(Duration::from_millis(2));
                        None
                    })
                });
                assert_eq!(seen, Some(u64::from(n)), "in place: {in_place}");
            }
            drop(ending);
            agent.join().expect("the agent's thread")
        });
        assert!(written > 10, "{written} written, in place: {in_place}");
        assert!(fixture.patch(&file, &changes("last")).expect("written"));
        assert_eq!(tree(&file)["spec"]["edit"], 149);
        assert_eq!(tree(&file)["metadata"]["annotations"][KEY], "last");
    }
}

#[test]
fn what_a_killed_agent_left_is_swept() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.yaml");
    let names =
        ["a.yaml", ".a.yaml.77.tmp", ".a.yaml.78.tmp", ".a.yaml.swp", ".b.yaml.77.tmp", ".a.yaml.x.tmp"];
    for name in names {
        let file = File::create(dir.path().join(name)).expect("made");
        let age = if name.contains("78") { 1 } else { 3600 };
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(age)).expect("aged");
    }
    sweep(&file);
    let left: Vec<_> = names.into_iter().filter(|name| dir.path().join(name).exists()).collect();
    assert_eq!(left, ["a.yaml", ".a.yaml.78.tmp", ".a.yaml.swp", ".b.yaml.77.tmp", ".a.yaml.x.tmp"]);
}
