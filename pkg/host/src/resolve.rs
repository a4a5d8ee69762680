//! Names to addresses, with `/etc/hosts` and the system's name servers. The files are read for each name anew,
//! so that a change of them is followed, and nothing older than the answer is ever given.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

/// How long a name of an endpoint may take.
pub(crate) const ENDPOINT: Duration = Duration::from_secs(5);
/// How long the name of this node may take.
pub(crate) const HOSTNAME: Duration = Duration::from_secs(2);

/// The addresses of a name, IPv4 first, in this time; `None` when it does not exist or nobody answers.
pub(crate) async fn resolve(name: String, limit: Duration) -> Option<Vec<IpAddr>> {
    if let Ok(ip) = name.parse() {
        return Some(vec![ip]);
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
