//! `kg webhook`: an HTTPS server that the API server asks whether a Peer may be created or changed. Flags, paths,
//! metrics and answers are Kilo's.

mod review;
#[cfg(test)]
mod tests;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder as _, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::args::{LogFormat, LogLevel, listen_addr};
use tls::Certificate;

/// The path that reviews are sent to.
const PATH: &str = "/validate";
/// Bytes of a review: an old and a new object, each as large as etcd takes.
const LARGEST: usize = 4 << 20;
/// How long a client may take for a handshake, the head of a request, or its body. The API server itself waits no
/// longer than this for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time; further ones wait.
const CONNECTIONS: usize = 64;
/// How long a stop waits for answers that are under way.
const DRAIN: Duration = Duration::from_secs(5);

/// Flags of `kg webhook`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File of the certificate chain (PEM); read again when it changes
    #[arg(long, value_name = "PATH", default_value = "")]
    pub cert_file: PathBuf,
    /// File of the certificate's private key (PEM); read again when it changes
    #[arg(long, value_name = "PATH", default_value = "")]
    pub key_file: PathBuf,
    /// Address of the HTTPS server
    #[arg(long, value_name = "ADDR", default_value = ":8443")]
    pub listen: String,
    /// Address of the HTTP server for metrics
    #[arg(long, value_name = "ADDR", default_value = ":1107")]
    pub listen_metrics: String,
    /// How logs are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
}

/// Serves until a signal ends it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let certificate = Certificate::load(&args.cert_file, &args.key_file)
        .context("--cert-file and --key-file name the certificate of the server")?;
    let listen = listen_addr("--listen", &args.listen)?;
    let metrics = listen_addr("--listen-metrics", &args.listen_metrics)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        let bind = async |address: SocketAddr| {
            TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
        };
        let (listener, metrics) = (bind(listen).await?, bind(metrics).await?);
        let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        info!(version = crate::args::VERSION, listen = %listen, "Starting the webhook");
        let stop = async move {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            info!("Stopping");
        };
        serve(certificate, listener, metrics, stop).await
    });
    runtime.shutdown_background();
    done
}

/// What has been asked and answered.
#[derive(Debug)]
struct Counters {
    registry: Registry,
    reviews: IntCounterVec,
    requests: IntCounterVec,
    errors: IntCounter,
}

impl Counters {
    fn new() -> anyhow::Result<Self> {
        let counters = Self {
            registry: Registry::new(),
            reviews: IntCounterVec::new(
                Opts::new("admission_requests_total", "The number of received admission reviews requests"),
                &["operation", "response"],
            )?,
            requests: IntCounterVec::new(
                Opts::new("http_requests_total", "The number of received http requests"),
                &["handler", "method"],
            )?,
            errors: IntCounter::new("errors_total", "The total number of errors")?,
        };
        counters.registry.register(Box::new(counters.reviews.clone()))?;
        counters.registry.register(Box::new(counters.requests.clone()))?;
        counters.registry.register(Box::new(counters.errors.clone()))?;
        let process = prometheus::process_collector::ProcessCollector::for_self();
        counters.registry.register(Box::new(process))?;
        Ok(counters)
    }
}

/// Serves reviews over TLS, and metrics beside it, until `stop` is ready and the answers under way are given.
async fn serve(
    certificate: Certificate,
    listener: TcpListener,
    metrics: TcpListener,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let counters = Arc::new(Counters::new()?);
    let reviews = Router::new().route(PATH, any(validate)).with_state(counters.clone());
    let pages = Router::new().route("/metrics", get(metrics_page)).with_state(counters);
    let (graceful, free) = (GracefulShutdown::new(), Arc::new(Semaphore::new(CONNECTIONS)));
    let mut metrics = tokio::spawn(async move { axum::serve(metrics, pages).await });
    let mut stop = std::pin::pin!(stop);
    let accept = async || {
        // Of a semaphore that nobody closes there is always one to be had, sooner or later.
        let permit = free.clone().acquire_owned().await;
        (permit, listener.accept().await)
    };
    loop {
        let (permit, accepted) = tokio::select! {
            accepted = accept() => accepted,
            ended = &mut metrics => return ended.context("the server of metrics died")?.context("serving metrics"),
            () = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // That of one client, or no file descriptor is left for the moment.
                warn!(%error, "Connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (config, service, watcher) = (certificate.current(), reviews.clone(), graceful.watcher());
        tokio::spawn(async move {
            if let Err(error) = converse(stream, config, service, watcher).await {
                debug!(error = %format!("{error:#}"), "Connection ended");
            }
            drop(permit);
        });
    }
    metrics.abort();
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        warn!("Some answers are not given: the stop took too long");
    }
    Ok(())
}

/// One connection, from the handshake to its end.
async fn converse(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    service: Router,
    watcher: hyper_util::server::graceful::Watcher,
) -> anyhow::Result<()> {
    let stream = timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await??;
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    watcher.watch(connection).await?;
    Ok(())
}

async fn validate(State(counters): State<Arc<Counters>>, request: Request<Body>) -> Response {
    counters.requests.with_label_values(&[PATH, method(request.method())]).inc();
    let (head, body) = request.into_parts();
    let body = match timeout(PATIENCE, to_bytes(body, LARGEST)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return refused(&counters, &format!("the body cannot be read: {error}")),
        Err(_) => return refused(&counters, "the body does not come"),
    };
    let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let answer = match review::judge(content_type, &body) {
        Ok(answer) => answer,
        Err(reason) => return refused(&counters, &reason),
    };
    let verdict = if answer.allowed() { "allowed" } else { "denied" };
    counters.reviews.with_label_values(&[answer.operation, verdict]).inc();
    debug!(operation = answer.operation, verdict, reason = answer.reason(), "Judged a review");
    match serde_json::to_vec(&answer) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => refused(&counters, &format!("the answer cannot be written: {error}")),
    }
}

fn refused(counters: &Counters, reason: &str) -> Response {
    counters.errors.inc();
    debug!(reason, "Refused a request");
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (StatusCode::BAD_REQUEST, kind, format!("{reason}\n")).into_response()
}

/// The name of a method that a metric may have: clients make up any.
fn method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    if known.contains(method) { method.as_str() } else { "other" }
}

async fn metrics_page(State(counters): State<Arc<Counters>>) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&counters.registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
