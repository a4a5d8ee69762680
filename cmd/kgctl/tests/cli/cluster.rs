//! `kgctl` against an API server that answers two lists and nothing else.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::common::kgctl;

/// A kubeconfig for a server on the loopback interface; the file goes with the folder.
struct Cluster {
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts a server that answers with these lists; of none, that there is no such resource.
    fn start(nodes: Value, peers: Option<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &nodes, peers.as_ref());
            }
        });
        let dir = tempfile::tempdir().expect("a folder");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "a", "user": {}}],
        });
        std::fs::write(dir.path().join("config"), config.to_string()).expect("a file");
        Self { dir }
    }

    fn kubeconfig(&self) -> String {
        self.dir.path().join("config").to_str().expect("a path").to_owned()
    }
}

fn answer(mut stream: TcpStream, nodes: &Value, peers: Option<&Value>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    let request = lines.next().expect("a request").expect("a line");
    lines.find(|line| line.as_ref().is_ok_and(String::is_empty));
    let not_found = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
        "message": "the server could not find the requested resource",
    });
    let (status, body) = match (request.split(['?', ' ']).nth(1), peers) {
        (Some("/api/v1/nodes"), _) => ("200 OK", nodes.clone()),
        (Some("/apis/kilo.squat.ai/v1alpha1/peers"), Some(peers)) => ("200 OK", peers.clone()),
        (_, _) => ("404 Not Found", not_found),
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n");
    // A client that has gone needs no answer.
    let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
}

fn nodes() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let node = |name: &str, endpoint: &str, key: &str, seen: u64| {
        json!({
            "metadata": {"name": name, "annotations": {
                "kilo.squat.ai/endpoint": endpoint, "kilo.squat.ai/key": key, "kilo.squat.ai/granularity": "full",
                "kilo.squat.ai/last-seen": seen.to_string(), "kilo.squat.ai/wireguard-ip": "10.9.0.1/24"}},
            "spec": {"podCIDR": "10.42.1.0/24"},
        })
    };
    json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": [
        node("n1", "localhost:51820", "Iy+WC3+YWwKy0NaEXbJUfczAZutuqIn9yMRmgtwg9nY=", now),
        node("n2", "203.0.113.2:51820", "VfedZk6Nldo1qQoZnPvvcx8fTXLaRKDXlpjjojJt210=", now - 3600),
    ]})
}

fn peers() -> Value {
    json!({"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "PeerList", "metadata": {"resourceVersion": "1"}, "items": [
        {"metadata": {"name": "alice"}, "spec": {
            "allowedIPs": ["10.5.0.1/32"], "publicKey": "x2LFH/9lAPDU34wbMtVrg2cxQQhXI69PA923gkfNi3Y="}},
    ]})
}

#[test]
fn objects_of_a_cluster_are_as_of_now() {
    let cluster = Cluster::start(nodes(), Some(peers()));
    let run = kgctl(&["plan", "--node", "n1", "-o", "json", "--kubeconfig", &cluster.kubeconfig()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let plan: Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(plan["outcome"], "ok", "{plan}");
    assert_eq!(plan["readyNodes"], json!(["n1"]), "n2 was last seen an hour ago");
    assert_eq!(plan["wireGuardCIDR"], "10.9.0.1/24", "the subnet is that of the nodes");
    assert_eq!(plan["segments"][0]["location"], "node:n1", "the granularity is that of the nodes");
    assert_eq!(plan["segments"][0]["endpointAddr"], "127.0.0.1:51820", "names are resolved");
    assert_eq!(plan["peers"][0]["name"], "alice");
}

#[test]
fn a_cluster_is_compared_with_files() {
    let cluster = Cluster::start(nodes(), Some(peers()));
    let list = |peers: Value| {
        let items =
            [nodes()["items"].as_array().expect("a list").clone(), peers.as_array().expect("a list").clone()];
        let mut items = items.concat();
        for item in &mut items {
            let node = item["spec"].get("podCIDR").is_some();
            item["apiVersion"] = json!(if node { "v1" } else { "kilo.squat.ai/v1alpha1" });
            item["kind"] = json!(if node { "Node" } else { "Peer" });
        }
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    };
    let path = cluster.dir.path().join("new.json");
    let diff =
        || kgctl(&["diff", "--kubeconfig", &cluster.kubeconfig(), "--to", path.to_str().expect("a path")]);
    std::fs::write(&path, list(peers()["items"].clone())).expect("a file");
    let run = diff();
    assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{}", run.stderr);
    std::fs::write(&path, list(json!([]))).expect("a file");
    let run = diff();
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stdout.contains("- route 10.5.0.1/32 dev kilo0"), "{}", run.stdout);
}

#[test]
fn what_is_wrong_with_a_cluster_is_one_line() {
    let cluster = Cluster::start(nodes(), None);
    let run = kgctl(&["graph", "--kubeconfig", &cluster.kubeconfig()]);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(
        run.stderr.starts_with("error: ") && run.stderr.contains("peers.kilo.squat.ai"),
        "{}",
        run.stderr
    );
    for (path, words) in [("/nowhere/config", "/nowhere/config"), ("", "cluster")] {
        let run = kgctl(&["graph", "--kubeconfig", path]);
        assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (1, "", 1), "{}", run.stderr);
        assert!(run.stderr.starts_with("error: ") && run.stderr.contains(words), "{}", run.stderr);
    }
}
