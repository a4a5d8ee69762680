//! Operations to the host: carried out, counted, logged, and worked into what is known of the kernel.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kilo_state::{Observed, Op};
use kilo_wireguard::PublicKey;
use tracing::info;

use crate::report::Stats;
use crate::{Host, HostError};

/// How many operations of one reconcile are logged one by one; more are logged by their number.
const LOGGED_OPS: usize = 32;

/// Carries operations out and works those that succeeded into what is known. The errors come back. Those of
/// the operations for which `repairs` has a true put right what somebody else changed.
pub(crate) async fn apply<H: Host>(
    host: &mut H,
    ops: &[Op],
    repairs: &[bool],
    names: &kilo_state::Names,
    observed: &mut Observed,
    programmed: &mut BTreeMap<PublicKey, SocketAddr>,
    stats: &Stats,
) -> Vec<HostError> {
    if ops.is_empty() {
        return Vec::new();
    }
    let results = host.apply(ops).await;
    let (mut done, mut errors) = (Vec::with_capacity(ops.len()), Vec::new());
    let repairs = repairs.iter().copied().chain(std::iter::repeat(false));
    let mut repaired = 0;
    for ((op, result), repair) in ops.iter().zip(results).zip(repairs) {
        stats.op(op.kind(), result.is_ok());
        match result {
            Ok(()) => {
                if repair {
                    stats.repair(op.kind());
                    repaired += 1;
                }
                if ops.len() > LOGGED_OPS {
                    // Told by their number.
                } else if repair {
                    info!(change = %op.display(names), by = host.culprit(op), "Repaired the host");
                } else {
                    info!(change = %op.display(names), "Changed the host");
                }
                remember_endpoint(programmed, op);
                done.push(op);
            }
            Err(error) => errors.push(error),
        }
    }
    kilo_state::apply_all(observed, &done);
    if ops.len() > LOGGED_OPS {
        info!(changes = ops.len(), repairs = repaired, failed = errors.len(), "Changed the host");
    }
    errors
}

/// Keeps the endpoints that were given to the device: a plan tells by them a changed setting from an
/// endpoint that the device has learned.
fn remember_endpoint(programmed: &mut BTreeMap<PublicKey, SocketAddr>, op: &Op) {
    #[allow(clippy::wildcard_enum_match_arm, reason = "only peers have endpoints")]
    match op {
        Op::AddPeer(peer) => match peer.endpoint {
            Some(endpoint) => drop(programmed.insert(peer.public_key, endpoint)),
            None => drop(programmed.remove(&peer.public_key)),
        },
        Op::UpdatePeer(change) => {
            if let Some(endpoint) = change.endpoint {
                programmed.insert(change.public_key, endpoint);
            }
        }
        Op::RemovePeer(key) => drop(programmed.remove(key)),
        _ => {}
    }
}

/// An error with its causes, for one log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
