//! The TUN link of the built-in device, with segmentation and checksum offload where the kernel has it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use tokio::sync::{mpsc, watch};
use tun_rs::{AsyncDevice, DeviceBuilder, GROTable, VIRTIO_NET_HDR_LEN};

use super::own::Own;

/// Packets that are handed over at a time; wireguard-go's number, too.
const BATCH: usize = 128;
/// The longest packet of IP.
const MAX_PACKET: usize = 65_535;
/// How often the link's MTU is looked at while packets flow.
const MTU_EVERY: Duration = Duration::from_secs(1);
/// WireGuard's usual MTU.
const DEFAULT_MTU: u16 = 1420;

/// Makes the link, down and without addresses.
pub(super) fn create(name: &str, mtu: Option<u32>) -> io::Result<Arc<AsyncDevice>> {
    let mtu = match mtu {
        Some(mtu) => {
            u16::try_from(mtu).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "MTU above 65535"))?
        }
        None => DEFAULT_MTU,
    };
    let build = |offload| {
        DeviceBuilder::new()
            .name(name)
            .mtu(mtu)
            .enable(false)
            .with(|opt| {
                opt.offload(offload);
            })
            .build_async()
    };
    let device = build(true).or_else(|error| {
        tracing::debug!(%error, "No offload for the TUN link");
        build(false)
    })?;
    Ok(Arc::new(device))
}

/// The two ends of the link for the device. `gone` becomes true when somebody removed the link.
pub(super) fn ends(device: Arc<AsyncDevice>, own: Own, gone: watch::Sender<bool>) -> (Send, Recv) {
    let (tx, rx) = mpsc::channel(BATCH * 8);
    tokio::spawn(write(Arc::clone(&device), rx));
    let (mtu, mtu_rx) = watch::channel(device.mtu().unwrap_or(DEFAULT_MTU));
    let recv = Recv {
        device,
        own,
        gone,
        raw: vec![0; VIRTIO_NET_HDR_LEN + MAX_PACKET],
        segments: vec![0; BATCH * MAX_PACKET],
        sizes: vec![0; BATCH],
        mtu,
        mtu_rx,
        looked: Instant::now(),
    };
    (Send(tx), recv)
}

/// From the tunnel to the link.
pub(super) struct Send(mpsc::Sender<Packet<Ip>>);

impl IpSend for Send {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        // The writer ends with the last sender, so the channel is open.
        self.0.send(packet).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

async fn write(device: Arc<AsyncDevice>, mut packets: mpsc::Receiver<Packet<Ip>>) {
    let mut table = GROTable::default();
    let mut batch = Vec::with_capacity(BATCH);
    let mut out: Vec<Vec<u8>> = Vec::new();
    while packets.recv_many(&mut batch, BATCH).await > 0 {
        out.resize_with(batch.len().max(out.len()), Vec::new);
        let n = batch.len();
        for (buffer, packet) in out.iter_mut().zip(batch.drain(..)) {
            buffer.clear();
            buffer.resize(VIRTIO_NET_HDR_LEN, 0);
            buffer.extend_from_slice(&packet.into_bytes());
        }
        if let Err(error) = device.send_multiple(&mut table, &mut out[..n], VIRTIO_NET_HDR_LEN).await {
            // A link that is down refuses packets; so does the kernel when one of them is malformed.
            tracing::trace!(%error, "Packets from the tunnel dropped");
        }
    }
}

/// From the link to the tunnel.
pub(super) struct Recv {
    device: Arc<AsyncDevice>,
    own: Own,
    gone: watch::Sender<bool>,
    /// What the kernel hands over: one packet, or many that it left in one piece.
    raw: Vec<u8>,
    /// [`BATCH`] packets of [`MAX_PACKET`]; memory that is not used is never touched.
    segments: Vec<u8>,
    sizes: Vec<usize>,
    mtu: watch::Sender<u16>,
    mtu_rx: watch::Receiver<u16>,
    looked: Instant,
}

impl IpRecv for Recv {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + std::marker::Send + 'a> {
        let mut buffers: Vec<&mut [u8]> = self.segments.chunks_exact_mut(MAX_PACKET).collect();
        let received = self.device.recv_multiple(&mut self.raw, &mut buffers, &mut self.sizes, 0).await;
        let n = match received {
            Ok(n) => n,
            Err(error) if is_gone(&error) => {
                self.gone.send_replace(true);
                // The one error that makes gotatun give up.
                return Err(io::Error::from_raw_os_error(libc::ENODEV));
            }
            Err(error) => {
                // One packet that cannot be cut up; the next one may be fine.
                tracing::trace!(%error, "Packet for the tunnel dropped");
                0
            }
        };
        if self.looked.elapsed() > MTU_EVERY {
            self.looked = Instant::now();
            if let Ok(mtu) = self.device.mtu() {
                self.mtu.send_if_modified(|old| std::mem::replace(old, mtu) != mtu);
            }
        }
        let (pool, own) = (pool.clone(), &self.own);
        Ok(self.segments.chunks_exact(MAX_PACKET).zip(&self.sizes).take(n).filter_map(
            move |(bytes, &size)| {
                let bytes = bytes.get(..size).filter(|bytes| !own.is_own(bytes))?;
                let mut packet = pool.get();
                packet.buf_mut().clear();
                packet.buf_mut().extend_from_slice(bytes);
                packet.try_into_ip().ok()
            },
        ))
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu_rx.clone().into()
    }
}

/// What reading gives once the link has been removed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EBADFD | libc::EFAULT | libc::ENODEV))
}
