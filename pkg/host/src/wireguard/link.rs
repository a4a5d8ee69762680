//! The links of WireGuard devices, by routing netlink.

use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::{Handle, LinkWireguard};

/// What there is of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A WireGuard link of the kernel.
    WireGuard(u32),
    /// Any other link.
    Other(u32),
}

/// A connection to the kernel for as long as `f` runs.
async fn with<T, F: Future<Output = Result<T, rtnetlink::Error>>>(
    f: impl FnOnce(Handle) -> F,
) -> Result<T, rtnetlink::Error> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|e| rtnetlink::Error::NamespaceError(e.to_string()))?;
    let task = tokio::spawn(connection);
    let result = f(handle).await;
    task.abort();
    result
}

/// Looks for a link.
pub(super) async fn find(name: &str) -> Result<Found, rtnetlink::Error> {
    let found = with(|handle| async move {
        handle.link().get().match_name(name.to_owned()).execute().try_next().await
    });
    let link = match found.await {
        Ok(Some(link)) => link,
        Ok(None) => return Ok(Found::Nothing),
        Err(e) if errno(&e) == Some(libc::ENODEV) => return Ok(Found::Nothing),
        Err(e) => return Err(e),
    };
    let wireguard = link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(info) if info.contains(&LinkInfo::Kind(InfoKind::Wireguard)))
    });
    let index = link.header.index;
    Ok(if wireguard { Found::WireGuard(index) } else { Found::Other(index) })
}

/// Makes a WireGuard link of the kernel, down.
pub(super) async fn create(name: &str, mtu: Option<u32>) -> Result<(), rtnetlink::Error> {
    let mut link = LinkWireguard::new(name);
    if let Some(mtu) = mtu {
        link = link.mtu(mtu);
    }
    with(|handle| async move { handle.link().add(link.build()).execute().await }).await
}

/// Removes a link; one that is not there is no error.
pub(super) async fn delete(name: &str) -> Result<(), rtnetlink::Error> {
    let (Found::WireGuard(index) | Found::Other(index)) = find(name).await? else { return Ok(()) };
    match with(|handle| async move { handle.link().del(index).execute().await }).await {
        Err(e) if errno(&e) != Some(libc::ENODEV) => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The kernel's error number.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    if let rtnetlink::Error::NetlinkError(e) = error { Some(e.raw_code().saturating_abs()) } else { None }
}
