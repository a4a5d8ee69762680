//! One Peer of a machine that joins and leaves by itself: found, made, and taken away again.

use kilo_mesh::{Finding, PeerObject};
use kilo_wireguard::PublicKey;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};

use crate::backend::patient;
use crate::crd::{Peer, PeerSpec};
use crate::error::CallError;
use crate::object::SlimPeer;

/// A Peer that was made by us: deleted is only this one, not another of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadePeer {
    name: String,
    uid: Option<String>,
}

/// The Peer of this name, or what is wrong with it; `None` where there is none.
///
/// # Errors
/// When the server cannot be asked or refuses.
pub async fn find_peer(
    client: &Client,
    name: &str,
) -> Result<Option<Result<PeerObject, Finding>>, CallError> {
    let api: Api<SlimPeer> = Api::all(client.clone());
    match patient(api.get(name)).await {
        Ok(peer) => Ok(Some(peer.into_peer())),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a Peer with these ranges; `keepalive` is in seconds.
///
/// # Errors
/// When the server cannot be asked, refuses, or has no definition of Peers.
pub async fn create_peer(
    client: &Client,
    name: &str,
    key: &PublicKey,
    ranges: &[String],
    keepalive: u16,
) -> Result<MadePeer, CallError> {
    let api: Api<Peer> = Api::all(client.clone());
    let spec = PeerSpec {
        allowed_ips: ranges.to_vec(),
        endpoint: None,
        persistent_keepalive: Some(keepalive.into()),
        preshared_key: None,
        public_key: key.to_string(),
    };
    let peer = Peer::new(name, spec);
    match patient(api.create(&PostParams::default(), &peer)).await {
        Ok(made) => Ok(MadePeer { name: name.to_owned(), uid: made.metadata.uid }),
        Err(error) if error.code() == Some(404) => Err(CallError::NoDefinition),
        Err(error) => Err(error),
    }
}

/// Deletes a Peer that was made by us. One that is gone, or another of its name, is no error and stays.
///
/// # Errors
/// When the server cannot be asked or refuses.
pub async fn delete_peer(client: &Client, made: &MadePeer) -> Result<(), CallError> {
    let api: Api<SlimPeer> = Api::all(client.clone());
    let preconditions = Some(Preconditions { uid: made.uid.clone(), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::default() };
    match patient(api.delete(&made.name, &params)).await {
        Err(error) if !matches!(error.code(), Some(404 | 409)) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
