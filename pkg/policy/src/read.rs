//! From a NetworkPolicy as JSON, whoever wrote it, to a [`Policy`]. What cannot be understood matches nothing, and
//! the policy isolates all the same: with a finding, never with an error.

use kilo_object::{Field, Notes, Unreadable};
use serde_json::Value;

use crate::block::Block;
use crate::intern::Interner;
use crate::labels::Selector;
use crate::policy::{Peer, Policy, Port, Protocol, Rule};

impl Policy {
    pub(crate) fn read(root: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Self {
        let spec = root.get("spec");
        notes.follows("it is not looked at");
        let legible = spec.is_missing() || spec.value().is_object();
        if legible {
            // One of a newer API, or one that is misspelt.
            _ = spec.only(&["podSelector", "policyTypes", "ingress", "egress"], notes);
        }
        notes.follows("the pods that the rest selects are isolated, and this policy allows nothing");
        if !legible {
            spec.must_be("a map", notes);
        }
        let (subjects, all) = Selector::read(&spec.get("podSelector"), interner, notes);
        let legible = legible && all.is_ok();
        let (by_ingress, by_egress) = if legible { isolated(&spec, notes) } else { (true, true) };
        notes.follows("it matches nothing");
        let mut rules = |list, peers| -> Box<[Rule]> {
            let rules = rules(&spec.get(list), peers, interner, notes);
            if legible { rules.into() } else { Box::default() }
        };
        let (ingress, egress) = (rules("ingress", "from"), rules("egress", "to"));
        Self { subjects, ingress: by_ingress.then_some(ingress), egress: by_egress.then_some(egress) }
    }
}

/// In which directions a policy isolates: ingress, egress. Those that cannot be known are isolated.
fn isolated(spec: &Field<'_, '_>, notes: &mut Notes) -> (bool, bool) {
    notes.follows("both directions are isolated");
    let types = spec.get("policyTypes");
    let Ok(items) = types.items(notes) else { return (true, true) };
    let (mut ingress, mut egress) = (false, false);
    for item in items {
        match item.value().as_str() {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            Some(_) | None => {
                notes.wrong(&item, "must be Ingress or Egress");
                (ingress, egress) = (true, true);
            }
        }
    }
    if ingress || egress {
        return (ingress, egress);
    }
    let egress = match spec.get("egress").value() {
        Value::Null => false,
        Value::Array(rules) => !rules.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => true,
    };
    (true, egress)
}

fn rules(list: &Field<'_, '_>, peers: &str, interner: &mut Interner, notes: &mut Notes) -> Vec<Rule> {
    let Ok(items) = list.items(notes) else { return Vec::new() };
    items
        .map(|item| {
            rule(&item, peers, interner, notes)
                .unwrap_or_else(|Unreadable| Rule { peers: Some(Box::default()), ports: None })
        })
        .collect()
}

fn rule(
    field: &Field<'_, '_>,
    peers: &str,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Result<Rule, Unreadable> {
    // `form` for `from` would be a rule for everybody. A rule that is `null` is none.
    if field.is_missing() {
        return Err(field.must_be("a map", notes));
    }
    field.only(&[peers, "ports"], notes)?;
    let peers = field.get(peers);
    let peers: Vec<_> =
        peers.items(notes)?.map(|item| peer(&item, interner, notes).unwrap_or(Peer::Nothing)).collect();
    let ports = field.get("ports");
    let ports: Vec<_> =
        ports.items(notes)?.map(|item| port(&item, interner, notes).unwrap_or(Port::Nothing)).collect();
    Ok(Rule {
        peers: (!peers.is_empty()).then(|| peers.into()),
        ports: (!ports.is_empty()).then(|| ports.into()),
    })
}

fn peer(field: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Result<Peer, Unreadable> {
    field.only(&["podSelector", "namespaceSelector", "ipBlock"], notes)?;
    let (pods, namespaces) = (field.get("podSelector"), field.get("namespaceSelector"));
    let block = field.get("ipBlock");
    if !block.is_missing() {
        if !pods.is_missing() || !namespaces.is_missing() {
            return Err(notes.wrong(&block, "must stand alone, without selectors"));
        }
        return Block::read(&block, notes).map(Peer::Block);
    }
    if pods.is_missing() && namespaces.is_missing() {
        return Err(notes.wrong(field, "must hold a podSelector, a namespaceSelector or an ipBlock"));
    }
    let mut selector = |field: &Field<'_, '_>| {
        let (selector, all) = Selector::read(field, interner, notes);
        all.map(|()| selector)
    };
    let selected = if namespaces.is_missing() { Ok(None) } else { selector(&namespaces).map(Some) };
    let pods = selector(&pods);
    Ok(Peer::Pods { namespaces: selected?, pods: pods? })
}

fn port(field: &Field<'_, '_>, interner: &mut Interner, notes: &mut Notes) -> Result<Port, Unreadable> {
    if field.is_missing() {
        return Err(field.must_be("a map", notes));
    }
    field.only(&["protocol", "port", "endPort"], notes)?;
    let protocol = Protocol::read(&field.get("protocol"), notes)?;
    let (port, end) = (field.get("port"), field.get("endPort"));
    match port.value() {
        Value::Null | Value::String(_) if !end.is_missing() => {
            Err(notes.wrong(&end, "must stand beside a port that is a number"))
        }
        Value::Null => Ok(Port::All(protocol)),
        Value::String(name) if name.bytes().any(|b| b.is_ascii_alphabetic()) => {
            Ok(Port::Name(protocol, interner.text(name)))
        }
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            let first = port.port(notes)?;
            let last = if end.is_missing() { first } else { end.port(notes)? };
            if last < first {
                return Err(notes.wrong(&end, "must not be below the port"));
            }
            Ok(Port::Numbers(protocol, first, last))
        }
    }
}
