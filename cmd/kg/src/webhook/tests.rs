//! The webhook over TLS on loopback: answers, limits, metrics, new certificates, and its end.

use std::path::Path;

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

const KEY: &str = "EWM8aBDkpBqdnpNWmWLKlGDCzPMn2MgAn7YV0O4E3GY=";

struct Server {
    dir: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
    reviews: SocketAddr,
    metrics: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<anyhow::Result<()>>,
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

/// Writes a new certificate of this name.
fn issue(dir: &Path, ca: &CertifiedIssuer<'static, KeyPair>, name: &str) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let cert = params.signed_by(&key, ca).expect("a certificate");
    std::fs::write(dir.join("tls.crt"), cert.pem()).expect("a file");
    std::fs::write(dir.join("tls.key"), key.serialize_pem()).expect("a file");
}

impl Server {
    async fn start() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let dir = tempfile::tempdir().expect("a directory");
        issue(dir.path(), &ca, "first.test");
        let certificate =
            Certificate::load(&dir.path().join("tls.crt"), &dir.path().join("tls.key")).expect("loaded");
        let [listener, metrics] = [TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0")];
        let (listener, metrics) = (listener.await.expect("a port"), metrics.await.expect("a port"));
        let [reviews, pages] = [&listener, &metrics].map(|l| l.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(certificate, listener, metrics, async {
            let _gone = stopped.await;
        }));
        Self { dir, ca, reviews, metrics: pages, stop: Some(stop), task }
    }

    /// A connection to whoever has a certificate of this name.
    async fn connect(&self, name: &str) -> std::io::Result<Stream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(self.ca.der().to_vec())).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.reviews).await?;
        let name = name.to_owned().try_into().expect("a name");
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn ask(&self, head: &str, body: &[u8]) -> String {
        let mut stream = self.connect("first.test").await.expect("a connection");
        let request =
            format!("{head}\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(request.as_bytes()).await.expect("sent");
        // Whoever sends too much is not listened to until the end.
        let _sent = stream.write_all(body).await;
        read(&mut stream).await
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.metrics).await.expect("a connection");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        text
    }
}

async fn read(stream: &mut Stream) -> String {
    let mut answer = Vec::new();
    let _end = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn review(operation: &str, key: &str) -> Vec<u8> {
    let object = if operation == "DELETE" {
        "null".to_owned()
    } else {
        format!(
            r#"{{"metadata":{{"name":"p"}},"spec":{{"allowedIPs":["10.5.0.1/32"],"publicKey":"{key}"}}}}"#
        )
    };
    format!(
        r#"{{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{{"uid":"u","operation":"{operation}","object":{object}}}}}"#
    )
    .into_bytes()
}

const POST: &str = "POST /validate?timeout=5s HTTP/1.1\r\nContent-Type: application/json; charset=utf-8";

#[tokio::test]
async fn reviews_are_answered_and_counted() {
    let server = Server::start().await;
    let good = server.ask(POST, &review("CREATE", KEY)).await;
    assert!(good.starts_with("HTTP/1.1 200") && good.contains(r#""uid":"u","allowed":true}"#), "{good}");
    assert!(good.contains("content-type: application/json\r\n"), "{good}");
    let bad = server.ask(POST, &review("UPDATE", "x")).await;
    assert!(bad.starts_with("HTTP/1.1 200") && bad.contains(r#""allowed":false"#), "{bad}");
    assert!(bad.contains("spec.publicKey"), "{bad}");
    let gone = server.ask(POST, &review("DELETE", "")).await;
    assert!(gone.starts_with("HTTP/1.1 200") && gone.contains(r#""allowed":true}"#), "{gone}");

    let metrics = server.metrics().await;
    for line in [
        r#"admission_requests_total{operation="CREATE",response="allowed"} 1"#,
        r#"admission_requests_total{operation="UPDATE",response="denied"} 1"#,
        r#"admission_requests_total{operation="DELETE",response="allowed"} 1"#,
        r#"http_requests_total{handler="/validate",method="POST"} 3"#,
        "errors_total 0",
        "process_resident_memory_bytes ",
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
}

#[tokio::test]
async fn strangers_get_an_error_and_the_server_goes_on() {
    let server = Server::start().await;
    let none = br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#;
    let huge = vec![b' '; LARGEST + 1];
    let deep = "[".repeat(1 << 20);
    for body in [&none[..], b"", b"{", &huge, deep.as_bytes(), &[0xff; 64]] {
        let answer = server.ask(POST, body).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let plain =
        server.ask("POST /validate HTTP/1.1\r\nContent-Type: text/plain", &review("CREATE", KEY)).await;
    assert!(plain.starts_with("HTTP/1.1 400") && plain.contains("Content-Type=text/plain"), "{plain}");
    assert!(server.ask("GET / HTTP/1.1", b"").await.starts_with("HTTP/1.1 404"));
    assert!(server.ask("BREW /validate HTTP/1.1", b"").await.starts_with("HTTP/1.1 400"));
    // No TLS, and a body that never comes.
    let mut raw = TcpStream::connect(server.reviews).await.expect("a connection");
    raw.write_all(b"GET /validate HTTP/1.1\r\n\r\n").await.expect("sent");
    let mut slow = server.connect("first.test").await.expect("a connection");
    slow.write_all(format!("{POST}\r\nHost: a\r\nContent-Length: 9\r\n\r\n").as_bytes()).await.expect("sent");

    assert!(server.ask(POST, &review("CREATE", KEY)).await.starts_with("HTTP/1.1 200"));
    let metrics = server.metrics().await;
    assert!(metrics.contains("errors_total 8"), "{metrics}");
    assert!(metrics.contains(r#"method="other"} 1"#), "{metrics}");
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let server = Server::start().await;
    assert!(server.connect("second.test").await.is_err(), "the certificate is for first.test");
    std::fs::write(server.dir.path().join("tls.key"), "half of it").expect("a file");
    tokio::time::sleep(tls::FRESH).await;
    server.connect("first.test").await.expect("the old one stays in force");
    issue(server.dir.path(), &server.ca, "second.test");
    tokio::time::sleep(tls::FRESH).await;
    server.connect("second.test").await.expect("the new one is in force");
    assert!(server.connect("first.test").await.is_err(), "the old one still is");
}

#[tokio::test]
async fn a_stop_gives_the_answers_that_are_under_way() {
    let mut server = Server::start().await;
    let (mut idle, mut busy) =
        (server.connect("first.test").await.expect("one"), server.connect("first.test").await.expect("two"));
    let body = review("CREATE", KEY);
    let head = format!("{POST}\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    busy.write_all(head.as_bytes()).await.expect("sent");
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.stop.take().expect("once").send(()).expect("it runs");
    tokio::time::sleep(Duration::from_millis(200)).await;
    busy.write_all(&body).await.expect("sent");
    let answer = read(&mut busy).await;
    assert!(answer.contains(r#""allowed":true"#), "{answer}");
    assert!(read(&mut idle).await.starts_with("HTTP/1.1 404"));
    let end = timeout(Duration::from_secs(2), server.task).await.expect("it ends");
    end.expect("no panic").expect("no error");
}

#[test]
fn a_certificate_that_is_missing_or_of_another_key_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    let error = format!("{:#}", Certificate::load(&cert, &key).expect_err("no file"));
    assert!(error.contains("tls.crt"), "{error}");
    assert!(Certificate::load(Path::new(""), Path::new("")).is_err());
    let ca = CertifiedIssuer::self_signed(CertificateParams::default(), KeyPair::generate().expect("a key"));
    let ca = ca.expect("an authority");
    issue(dir.path(), &ca, "a.test");
    let other = KeyPair::generate().expect("a key").serialize_pem();
    std::fs::write(&key, &other).expect("a file");
    let error = format!("{:#}", Certificate::load(&cert, &key).expect_err("another key"));
    assert!(error.contains("tls.crt") && !error.contains(&other[30..60]), "{error}");
}
