//! Names to addresses, with `/etc/hosts` and the system's name servers. The files are read for each name anew,
//! so that a change of them is followed, and nothing older than the answer is ever given.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

/// How long a name of an endpoint may take.
pub(crate) const ENDPOINT: Duration = Duration::from_secs(5);
/// How long the name of this node may take.
pub(crate) const HOSTNAME: Duration = Duration::from_secs(2);

/// The addresses of a name, IPv4 first, in this time; `None` when it does not exist or nobody answers.
pub(crate) async fn resolve(name: String, limit: Duration) -> Option<Vec<IpAddr>> {
    if let Ok(ip) = name.parse() {
        return Some(vec![ip]);
    }
    if let Some(known) = from_hosts_file(&name) {
        return Some(known);
    }
    let lookup = async {
        let mut builder = TokioResolver::builder_tokio()?;
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        builder.build()?.lookup_ip(name.as_str()).await
    };
    let answer = match tokio::time::timeout(limit, lookup).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::debug!(name, %error, "Name does not resolve");
            return None;
        }
        Err(_) => {
            tracing::debug!(name, seconds = limit.as_secs(), "Nobody answers for a name");
            return None;
        }
    };
    let (mut v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = answer.iter().partition(IpAddr::is_ipv4);
    v4.extend(v6);
    (!v4.is_empty()).then_some(v4)
}

/// What `/etc/hosts` says, IPv4 first. The resolver itself would still ask the servers for the other family, and
/// lose this when they are silent.
fn from_hosts_file(name: &str) -> Option<Vec<IpAddr>> {
    let hosts = Hosts::from_system().ok()?;
    let name: Name = name.parse().ok()?;
    let of = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
    let found: Vec<IpAddr> = [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(of)
        .flat_map(|lookup| {
            lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
        })
        .collect();
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_and_the_hosts_file_need_no_server() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(resolve("fd00::7".into(), HOSTNAME).await, Some(vec![ip("fd00::7")]));
        let local = resolve("localhost".into(), HOSTNAME).await.unwrap();
        assert_eq!(local[0], ip("127.0.0.1"), "IPv4 first: {local:?}");
    }
}
