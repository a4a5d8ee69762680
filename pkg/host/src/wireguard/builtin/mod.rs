//! WireGuard in this process, for kernels that have none: gotatun over a TUN link, with `wg(8)`'s socket.

mod device;
mod own;
mod tun;
mod udp;

use std::sync::{Arc, Weak};
use std::time::Duration;

pub use device::BuiltInError;
use device::{State, Tunnel, public};
use kilo_wireguard::PublicKey;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::WireGuardConfig;
use super::learned::Learned;
use super::status::{SetDevice, SetPeer, Status};
use super::uapi::{Answer, Backend, Errno, Server};

/// Peers that are called at the same time when the device starts.
const CALLS: usize = 256;
/// How long an answer to a call is waited for before the next ones are called; gotatun repeats calls itself.
const CALL_TIME: Duration = Duration::from_millis(100);
/// How soon after a packet from somewhere new the endpoints are looked at, and how often at most.
const LEARN_AFTER: Duration = Duration::from_secs(1);

/// A device of ours. It must be stopped with [`BuiltIn::stop`].
pub struct BuiltIn {
    state: Arc<Mutex<State>>,
    server: Server,
    tasks: [JoinHandle<()>; 2],
    gone: watch::Receiver<bool>,
    link: Weak<tun_rs::AsyncDevice>,
}

/// The device as those see it who come by its socket.
#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    touched: Arc<Notify>,
}

impl BuiltIn {
    /// Makes the TUN link, down, and the socket. Nothing is bound to the network before there is a peer. `touched` is
    /// told when somebody changes the device by its socket.
    pub async fn start(
        name: &str,
        mtu: Option<u32>,
        config: &WireGuardConfig,
        touched: Arc<Notify>,
    ) -> Result<Self, BuiltInError> {
        let link = tun::create(name, mtu).map_err(BuiltInError::Tun)?;
        let weak = Arc::downgrade(&link);
        let (gone_tx, gone) = watch::channel(false);
        let (calls, called) = mpsc::unbounded_channel();
        let own = own::Own::new(link.if_index().map_err(BuiltInError::Tun)?);
        let ends = tun::ends(link, own.clone(), gone_tx);
        let state = State::new(ends, own, Learned::load(&config.data_dir), calls).await?;
        let (tunnel, sources) = (state.tunnel(), state.sources());
        let state = Arc::new(Mutex::new(state));
        let shared = Shared { state: Arc::clone(&state), touched };
        let server = Server::bind(&config.socket_dir, name, shared).map_err(BuiltInError::Socket)?;
        let tasks = [tokio::spawn(call(tunnel, called)), tokio::spawn(learn(Arc::clone(&state), sources))];
        Ok(Self { state, server, tasks, gone, link: weak })
    }

    /// Whether somebody removed the link.
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Reads the device, and starts it if it could not be started before.
    pub async fn status(&self) -> Result<Status, BuiltInError> {
        let mut state = self.state.lock().await;
        state.run().await?;
        Ok(read_and_learn(&mut state).await)
    }

    /// Changes the device's own settings.
    pub async fn set(&self, set: &SetDevice) -> Result<(), BuiltInError> {
        self.state.lock().await.set(set).await
    }

    /// Adds, changes or removes one peer.
    pub async fn set_peer(&self, set: &SetPeer) -> Result<(), BuiltInError> {
        self.state.lock().await.set_peer(set).await
    }

    /// Stops the device. Its link and socket are gone when this returns.
    pub async fn stop(self) {
        let Self { state, server, tasks, gone: _, link } = self;
        drop(server);
        let tunnel = {
            let mut state = state.lock().await;
            read_and_learn(&mut state).await;
            state.tunnel()
        };
        for task in tasks {
            task.abort();
            // Cancelled is what it should be.
            let _ = task.await;
        }
        tunnel.suspend().await;
        drop(state);
        if let Ok(tunnel) = Arc::try_unwrap(tunnel) {
            tunnel.stop().await;
        }
        // gotatun lets go of the link in a task of its own.
        for _ in 0..200 {
            if link.strong_count() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tracing::warn!("The TUN link is still in use");
    }
}

impl Backend for Shared {
    async fn get(&self) -> Status {
        self.state.lock().await.status(now()).await
    }

    async fn set(&self, set: SetDevice) -> Answer {
        let result = self.state.lock().await.set(&set).await;
        // Also when it was refused: what came before that was carried out.
        self.touched.notify_one();
        result.map_err(|error| {
            tracing::debug!(%error, "Change by the configuration socket refused");
            match error {
                BuiltInError::Bind { .. } => Errno::PORT_IN_USE,
                BuiltInError::NoKey | BuiltInError::NoSuchPeer => Errno::INVALID,
                BuiltInError::Device(_) | BuiltInError::Tun(_) | BuiltInError::Socket(_) => Errno::IO,
            }
        })
    }
}

async fn read_and_learn(state: &mut State) -> Status {
    let status = state.status(now()).await;
    if let Some(write) = state.learn(&status) {
        let written = tokio::task::spawn_blocking(move || write.run()).await;
        if let Err(error) = written.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            tracing::warn!(%error, "Cannot store the learned endpoints");
            state.not_written();
        }
    }
    status
}

/// Calls peers as soon as they are there: until they answer, they send to a session that is gone.
async fn call(tunnel: Arc<Tunnel>, mut keys: mpsc::UnboundedReceiver<PublicKey>) {
    let mut batch = Vec::new();
    while keys.recv_many(&mut batch, CALLS).await > 0 {
        let tunnel = &tunnel;
        let calls = batch.drain(..).map(|key| async move {
            // No answer in time, a peer that has gone: nothing is to be done about either.
            let _ = tokio::time::timeout(CALL_TIME, tunnel.force_handshake(&public(&key))).await;
        });
        futures::future::join_all(calls).await;
    }
}

/// Stores where peers are soon after one moved: the process may be killed at any time.
async fn learn(state: Arc<Mutex<State>>, sources: udp::Sources) {
    loop {
        sources.unknown().await;
        tokio::time::sleep(LEARN_AFTER).await;
        read_and_learn(&mut *state.lock().await).await;
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs())
}
