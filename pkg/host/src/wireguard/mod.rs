//! The WireGuard device: the kernel's, somebody else's userspace device, or the built-in one. Whichever it
//! is, peers are added, changed and removed one by one, so that nobody else's session is touched.

mod builtin;
pub(crate) mod kernel;
mod learned;
mod link;
mod status;
pub(crate) mod uapi;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use builtin::BuiltIn;
use kernel::Kernel;
use kilo_agent::{HostError, Severity};
use kilo_mesh::DeviceFact;
use kilo_state::{Device, DeviceChange, Op};
use kilo_wireguard::PrivateKey;
use link::Found;
pub use status::{PeerStatus, SetDevice, SetPeer, Status};
use tokio::sync::Notify;
use uapi::Client;
pub use uapi::SOCKET_DIR;

/// Operations that go to a foreign device in one request.
const FOREIGN_BATCH: usize = 256;

/// `--wireguard`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The kernel's where it has WireGuard, else the built-in device.
    #[default]
    Auto,
    /// The kernel's or none.
    Kernel,
    /// The built-in device, whatever the kernel has.
    Userspace,
}

impl Mode {
    /// All of them, as written on the command line.
    pub const NAMES: [&str; 3] = ["auto", "kernel", "userspace"];
}

impl std::str::FromStr for Mode {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "userspace" => Ok(Self::Userspace),
            _ => Err(format!("unknown WireGuard {s:?}; possible values are: {}", Self::NAMES.join(", "))),
        }
    }
}

/// What device is wanted.
#[derive(Clone, Debug)]
pub struct WireGuardConfig {
    /// Whose.
    pub mode: Mode,
    /// Its name, `kilo0`.
    pub interface: String,
    /// Where learned endpoints are kept.
    pub data_dir: PathBuf,
    /// `--create-interface`: a missing device is made.
    pub create: bool,
    /// Where configuration sockets are; [`SOCKET_DIR`] unless in tests.
    pub socket_dir: PathBuf,
}

/// How much was done to the device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOps {
    /// Changes that were asked for: of the device, of a peer.
    pub operations: u64,
    /// Netlink messages, requests to a foreign device or calls of the built-in one that they took.
    pub messages: u64,
}

/// The device that is in use.
enum Backend {
    Kernel(Kernel),
    Foreign(Client),
    BuiltIn(BuiltIn),
}

/// The WireGuard device of this machine.
pub struct WireGuard {
    config: WireGuardConfig,
    backend: Option<Backend>,
    ops: DeviceOps,
    /// Somebody else configured the built-in device.
    touched: Arc<Notify>,
}

impl WireGuard {
    /// Nothing is looked for or made before it is asked for.
    pub fn open(config: WireGuardConfig) -> Result<Self, HostError> {
        // IFNAMSIZ with its final zero; the name is part of a path, too.
        let name = &config.interface;
        if name.is_empty()
            || name.len() > 15
            || name.contains(['/', '\0', ' '])
            || name == "."
            || name == ".."
        {
            let action = format!("opening WireGuard device {name:?}");
            return Err(HostError { action, severity: Severity::Fatal, source: "not a link's name".into() });
        }
        Ok(Self { config, backend: None, ops: DeviceOps::default(), touched: Arc::default() })
    }

    /// What was done so far.
    pub fn ops(&self) -> DeviceOps {
        self.ops
    }

    /// Waits until somebody else configured the device by its socket. Of other devices than the built-in one this
    /// cannot be known.
    pub async fn touched(&self) {
        self.touched.notified().await;
    }

    /// Which device is in use: `kernel`, `foreign`, `built-in`; `None` before one was found or made.
    pub fn kind(&self) -> Option<&'static str> {
        self.backend.as_ref().map(|backend| match backend {
            Backend::Kernel(_) => "kernel",
            Backend::Foreign(_) => "foreign",
            Backend::BuiltIn(_) => "built-in",
        })
    }

    /// Makes the link, down and without addresses: the kernel's or, where it has no WireGuard, that of the
    /// built-in device. A device that is there is used as it is.
    pub async fn create(&mut self, name: &str, mtu: Option<u32>) -> Result<(), HostError> {
        let action = || format!("creating WireGuard device {name}");
        name.clone_into(&mut self.config.interface);
        self.attach().await?;
        if self.backend.is_some() {
            return Ok(());
        }
        if !self.config.create {
            return Err(failed(action(), "it does not exist and --create-interface is false"));
        }
        if link::find(name).await.map_err(|e| failed(action(), e))? != Found::Nothing {
            let why =
                "a link of this name exists and is no WireGuard device, or its configuration socket is gone";
            return Err(failed(action(), why));
        }
        if self.config.mode != Mode::Userspace {
            match link::create(name, mtu).await {
                Ok(()) => {
                    tracing::info!(link = name, "Created kernel WireGuard device");
                    return self.attach().await;
                }
                Err(e) if self.config.mode == Mode::Auto && link::errno(&e) == Some(libc::EOPNOTSUPP) => {}
                Err(e) => return Err(failed(action(), e)),
            }
        }
        let device = BuiltIn::start(name, mtu, &self.config, self.touched.clone()).await;
        self.backend = Some(Backend::BuiltIn(device.map_err(|e| failed(action(), e))?));
        tracing::info!(link = name, "Created built-in WireGuard device");
        Ok(())
    }

    /// Reads the device and the facts about its peers, both by key. `None` where there is no device.
    pub async fn read(&mut self) -> Result<Option<(Device, Vec<DeviceFact>)>, HostError> {
        Ok(self.status().await?.map(Status::into_observed))
    }

    /// Reads all there is to know about the device.
    pub async fn status(&mut self) -> Result<Option<Status>, HostError> {
        let action = format!("reading WireGuard device {}", self.config.interface);
        self.attach().await?;
        let gone = match &mut self.backend {
            None => return Ok(None),
            Some(Backend::Kernel(kernel)) => match kernel.status() {
                Ok(status) => return Ok(Some(status)),
                Err(e) if kernel::is_gone(&e) => true,
                Err(e) => return Err(failed(action, e)),
            },
            Some(Backend::Foreign(client)) => match client.get().await {
                Ok(status) => return Ok(Some(status)),
                Err(e) if e.is_gone() => true,
                Err(e) => return Err(failed(action, e)),
            },
            Some(Backend::BuiltIn(device)) => {
                return device.status().await.map(Some).map_err(|e| failed(action, e));
            }
        };
        if gone {
            self.backend = None;
        }
        Ok(None)
    }

    /// Changes the device's own settings; `key` is the private key whose public key the change may name.
    pub async fn configure(&mut self, change: &DeviceChange, key: &PrivateKey) -> Result<(), HostError> {
        let action = || format!("configuring WireGuard device {}", self.config.interface);
        if change.public_key.is_some_and(|public| public != key.public_key()) {
            let source = "the private key at hand is not that of the wanted public key".into();
            return Err(HostError { action: action(), severity: Severity::Fatal, source });
        }
        self.ops.operations += 1;
        let set = SetDevice::from_change(change, key);
        let result = match &mut self.backend {
            None => Err("there is no device".into()),
            Some(Backend::Kernel(kernel)) => {
                let before = kernel.messages();
                let result = kernel.set(&set);
                self.ops.messages += kernel.messages() - before;
                result.map_err(boxed)
            }
            Some(Backend::Foreign(client)) => {
                self.ops.messages += 1;
                client.set(&set).await.map_err(boxed)
            }
            Some(Backend::BuiltIn(device)) => {
                self.ops.messages += 1;
                device.set(&set).await.map_err(boxed)
            }
        };
        result.map_err(|e| failed(action(), e))
    }

    /// Adds, changes and removes peers, each on its own; the answers are in the order of the operations. An
    /// operation that is not about a peer is an error.
    pub async fn apply_peers(&mut self, ops: &[Op]) -> Vec<Result<(), HostError>> {
        self.ops.operations += ops.len() as u64;
        let sets: Vec<Option<SetPeer>> = ops.iter().map(SetPeer::from_op).collect();
        if let Some(Backend::Foreign(client)) = &self.backend {
            return foreign(client, &sets, &mut self.ops.messages).await;
        }
        let mut results = Vec::with_capacity(sets.len());
        for set in sets {
            let Some(set) = set else {
                results.push(Err(no_peer_op()));
                continue;
            };
            let result = match &mut self.backend {
                None | Some(Backend::Foreign(_)) => Err("there is no device".into()),
                Some(Backend::Kernel(kernel)) => {
                    let before = kernel.messages();
                    let result = kernel.set(&SetDevice { peers: vec![set.clone()], ..SetDevice::default() });
                    self.ops.messages += kernel.messages() - before;
                    result.map_err(boxed)
                }
                Some(Backend::BuiltIn(device)) => {
                    self.ops.messages += 1;
                    device.set_peer(&set).await.map_err(boxed)
                }
            };
            results.push(result.map_err(|e| failed(set.action(), e)));
        }
        results
    }

    /// Removes the device, whoever made it; one that is not there is no error.
    pub async fn delete(&mut self) -> Result<(), HostError> {
        let name = self.config.interface.clone();
        if let Some(Backend::BuiltIn(device)) = self.backend.take() {
            device.stop().await;
            return Ok(());
        }
        link::delete(&name).await.map_err(|e| failed(format!("deleting WireGuard device {name}"), e))
    }

    /// Lets go of the device. The built-in one ends, its link with it; any other one stays as it is.
    pub async fn close(&mut self) {
        if let Some(Backend::BuiltIn(device)) = self.backend.take() {
            device.stop().await;
        }
    }

    /// Finds the device that is there, if it is not in use already.
    async fn attach(&mut self) -> Result<(), HostError> {
        let name = self.config.interface.clone();
        let action = || format!("looking for WireGuard device {name}");
        if let Some(Backend::BuiltIn(device)) = &self.backend
            && device.is_gone()
        {
            self.close().await;
        }
        if self.backend.is_some() {
            return Ok(());
        }
        let found = link::find(&name).await.map_err(|e| failed(action(), e))?;
        if self.config.mode != Mode::Userspace
            && matches!(found, Found::WireGuard(_))
            && let Some(kernel) = Kernel::open(&name).map_err(|e| failed(action(), e))?
        {
            self.backend = Some(Backend::Kernel(kernel));
            return Ok(());
        }
        let client = Client::new(&self.config.socket_dir, &name);
        // A process may go on answering whose link somebody has removed: that is no device.
        if self.config.mode != Mode::Kernel && found != Found::Nothing && client.is_there().await {
            self.backend = Some(Backend::Foreign(client));
        }
        Ok(())
    }
}

/// Many operations in one request; when it is refused, each on its own, to tell which of them it was. A device that
/// does not answer is not asked again: each question would take its time.
async fn foreign(
    client: &Client,
    sets: &[Option<SetPeer>],
    messages: &mut u64,
) -> Vec<Result<(), HostError>> {
    let mut results = Vec::with_capacity(sets.len());
    for batch in sets.chunks(FOREIGN_BATCH) {
        let peers: Vec<SetPeer> = batch.iter().flatten().cloned().collect();
        let mut silent = None;
        if peers.len() == batch.len() {
            *messages += 1;
            match client.set(&SetDevice { peers, ..SetDevice::default() }).await {
                Ok(()) => {
                    results.extend(batch.iter().map(|_| Ok(())));
                    continue;
                }
                Err(error) => silent = (!error.is_refusal()).then(|| Arc::new(error)),
            }
        }
        for set in batch {
            let Some(set) = set else {
                results.push(Err(no_peer_op()));
                continue;
            };
            if let Some(why) = &silent {
                results.push(Err(failed(set.action(), boxed(why.clone()))));
                continue;
            }
            *messages += 1;
            let set_one = SetDevice { peers: vec![set.clone()], ..SetDevice::default() };
            results.push(client.set(&set_one).await.map_err(|e| failed(set.action(), e)));
        }
    }
    results
}

fn no_peer_op() -> HostError {
    failed("changing WireGuard peers".to_owned(), "the operation is not about a peer")
}

fn boxed(error: impl Error + Send + Sync + 'static) -> Box<dyn Error + Send + Sync> {
    Box::new(error)
}

fn failed(action: String, source: impl Into<Box<dyn Error + Send + Sync>>) -> HostError {
    HostError { action, severity: Severity::Retry, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(interface: &str) -> Result<WireGuard, HostError> {
        WireGuard::open(WireGuardConfig {
            mode: Mode::Userspace,
            interface: interface.into(),
            data_dir: PathBuf::from("/nonexistent"),
            create: true,
            socket_dir: PathBuf::from("/nonexistent"),
        })
    }

    #[test]
    fn modes_and_names_are_checked() {
        for name in Mode::NAMES {
            assert!(name.parse::<Mode>().is_ok(), "{name}");
        }
        let error = "wg".parse::<Mode>().expect_err("no mode");
        assert_eq!(error, "unknown WireGuard \"wg\"; possible values are: auto, kernel, userspace");
        for name in ["", "..", "a/b", "a b", "sixteencharacter"] {
            assert!(open(name).is_err(), "{name}");
        }
        assert!(open("kilo0").is_ok());
    }

    /// The host's seam wants futures that may move between threads.
    #[test]
    fn futures_can_be_sent() {
        fn check(_: impl Send) {}
        let mut wireguard = open("kilo0").expect("a name");
        let key = PrivateKey::from_bytes([1; 32]);
        check(wireguard.create("kilo0", None));
        check(wireguard.read());
        check(wireguard.configure(&DeviceChange { public_key: None, listen_port: None }, &key));
        check(wireguard.apply_peers(&[]));
        check(wireguard.delete());
        check(wireguard.close());
    }

    #[tokio::test]
    async fn without_a_device_operations_fail_and_errors_hold_no_secrets() {
        let mut wireguard = open("kilo0").expect("a name");
        let key = PrivateKey::from_bytes([1; 32]);
        let wrong = DeviceChange {
            public_key: Some(PrivateKey::from_bytes([2; 32]).public_key()),
            listen_port: None,
        };
        let error = wireguard.configure(&wrong, &key).await.expect_err("another key");
        assert_eq!(error.severity, Severity::Fatal);
        assert!(!format!("{error:?}").contains(&*key.secret_base64()));
        let ops = [Op::RemovePeer(key.public_key()), Op::SetUp(kilo_state::Dev::WireGuard)];
        let results = wireguard.apply_peers(&ops).await;
        assert!(results.len() == 2 && results.iter().all(Result::is_err));
    }
}
