//! What a CNI call or libcni's record of one says about a pod.

use std::net::IpAddr;

use kilo_agent::AttachedPod;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The pod's own link; others are further networks of it, whose addresses nobody selects.
pub(super) const IFNAME: &str = "eth0";

/// What the plugin tells the agent, one JSON line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE")]
pub enum Call {
    /// A pod has its addresses.
    Add {
        /// The runtime's name for the sandbox, `CNI_CONTAINERID`.
        container: String,
        /// The pod's link in the sandbox, `CNI_IFNAME`.
        ifname: String,
        /// `CNI_ARGS`.
        args: String,
        /// The result of the plugins before, `prevResult`.
        result: Value,
    },
    /// A pod ends.
    Del {
        /// As of the call that added it.
        container: String,
        /// As of the call that added it.
        ifname: String,
    },
    /// Only these sandboxes are left.
    Gc {
        /// As of the calls that added them.
        containers: Vec<String>,
    },
}

/// The pod of a call; `None` where it says no pod or no address.
pub(super) fn pod<'a>(
    container: &str,
    args: impl IntoIterator<Item = (&'a str, &'a str)>,
    result: &Value,
) -> Option<AttachedPod> {
    let mut pod = AttachedPod {
        container: container.to_owned(),
        namespace: String::new(),
        name: String::new(),
        uid: String::new(),
        link: link(result),
        addresses: addresses(result),
    };
    for (key, value) in args {
        match key {
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => value.clone_into(&mut pod.uid),
            _ => {}
        }
    }
    let whole = !pod.namespace.is_empty() && !pod.name.is_empty() && !pod.addresses.is_empty();
    whole.then_some(pod)
}

/// `CNI_ARGS`: pairs with semicolons between them.
pub(super) fn split_args(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(';').filter_map(|pair| pair.split_once('='))
}

/// The addresses in a result, with and without the older form.
pub(super) fn addresses(result: &Value) -> Vec<IpAddr> {
    let list = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let texts = list
        .filter_map(|ip| ip.get("address"))
        .chain(["ip4", "ip6"].iter().filter_map(|family| result.get(family)?.get("ip")));
    let parsed = texts.filter_map(|text| text.as_str()?.split('/').next()?.parse().ok());
    let mut addresses: Vec<IpAddr> = parsed.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The end on the node: a bridge may stand before it in the list.
pub(super) fn link(result: &Value) -> String {
    let list = result.get("interfaces").and_then(Value::as_array).into_iter().flatten();
    let here = list.filter(|link| link.get("sandbox").and_then(Value::as_str).unwrap_or_default().is_empty());
    let mut names = here.filter_map(|link| link.get("name")?.as_str());
    names.next_back().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_result_of_the_bridge_plugin() {
        let result = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "kube-bridge"}, {"name": "veth1", "sandbox": ""}, {"name": "eth0", "sandbox": "/ns"}],
            "ips": [{"address": "10.2.1.2/24"}, {"address": "fd02:1::2/64"}, {"address": 7}]
        });
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u;x";
        let found = pod("c", split_args(args), &result).expect("a pod");
        assert_eq!(
            (found.namespace.as_str(), found.name.as_str(), found.uid.as_str()),
            ("shop", "web-0", "u")
        );
        assert_eq!(found.link, "veth1");
        assert_eq!(found.addresses, ["10.2.1.2".parse::<IpAddr>().unwrap(), "fd02:1::2".parse().unwrap()]);
        assert_eq!(pod("c", split_args("K8S_POD_NAME=x"), &result), None, "no namespace");
    }

    #[test]
    fn older_and_hostile_results() {
        let old = json!({"ip4": {"ip": "10.2.1.2/24"}});
        assert_eq!(addresses(&old), ["10.2.1.2".parse::<IpAddr>().unwrap()]);
        for hostile in
            [json!(null), json!([]), json!({"ips": 1, "interfaces": {"a": 1}}), json!({"ips": [[], {}]})]
        {
            assert!(addresses(&hostile).is_empty() && link(&hostile).is_empty());
        }
    }
}
