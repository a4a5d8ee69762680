//! One change in a large cluster, from the event to the kernel's answer; before it the start, and what is held in
//! memory after it.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kilo_agent::Compile;
use kilo_policy::Kind;
use serde_json::Value;

use super::cluster::{APPS, NAMESPACES, Size, pod, policy};
use super::{Engine, Took, millis, told, wait};
use crate::figures::Figure;
use crate::process::{cpu, memory_of};

/// How many changes of each sort.
const ROUNDS: usize = 300;
/// Rules of the other table, which holds the same lock while it is written.
const OTHER_RULES: usize = 8000;

pub fn measure(name: &str, size: Size, changes: bool) -> Result<Vec<Figure>> {
    wait(run(name, size, changes))
}

async fn run(name: &str, size: Size, changes: bool) -> Result<Vec<Figure>> {
    // Where memory is asked for, no object is there twice.
    let objects: Option<Vec<(Kind, Value)>> = changes.then(|| size.objects().collect());
    let (begin, used) = (Instant::now(), cpu());
    let mut engine = Engine::new(size.facts()?).await?;
    let last = match objects {
        Some(objects) => engine.start(objects).await?,
        None => engine.start(size.objects()).await?,
    };
    let start = begin.elapsed();
    let programmed = engine.policies.programmed();
    let elements = programmed.hash_elements + programmed.interval_elements;
    let mut figures = vec![
        Figure::new(format!("{name}/start/all-ms"), millis(start)),
        Figure::new(format!("{name}/start/cpu-ms"), millis(cpu() - used)),
        Figure::new(format!("{name}/start/last-event-to-ack-ms"), millis(last.wall)),
        Figure::new(format!("{name}/start/bytes"), last.committed.bytes as f64),
        Figure::new(format!("{name}/resident-mib"), memory_of("self", "VmRSS")? as f64 / 1024.0),
        Figure::new(format!("{name}/profiles"), programmed.profiles as f64),
        Figure::new(format!("{name}/sets"), programmed.sets as f64),
        Figure::new(format!("{name}/elements-a-pod"), elements as f64 / size.pods as f64),
    ];
    if !changes {
        return Ok(figures);
    }
    figures.extend(rounds(&mut engine, name, size).await?);
    match Other::start() {
        Ok(other) => {
            figures.extend(rounds(&mut engine, &format!("{name}/beside-iptables"), size).await?);
            drop(other);
        }
        Err(why) => println!("skipped: {name}/beside-iptables: {why:#}"),
    }
    Ok(figures)
}

async fn rounds(engine: &mut Engine, name: &str, size: Size) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let [mut remote, mut here, mut relabelled, mut changed] = [const { Vec::<Took>::new() }; 4];
    for round in 0..ROUNDS {
        // One that is far away, and is a member of sets.
        let far = size.pods.next_multiple_of(APPS * NAMESPACES) + member(round);
        let object = pod(far, size, "blue");
        remote.push(engine.took(|policies| _ = policies.apply(Kind::Pod, &object)).await?);
        gone(engine, &object).await?;
        // One of this node, which gets its own entries.
        let near = pod(round % size.local, size, "blue");
        gone(engine, &near).await?;
        here.push(engine.took(|policies| _ = policies.apply(Kind::Pod, &near)).await?);
        let colour = if round % 2 == 0 { "red" } else { "blue" };
        let object = pod(APPS * NAMESPACES + member(round / 2 % 40), size, colour);
        relabelled.push(engine.took(|policies| _ = policies.apply(Kind::Pod, &object)).await?);
        // One that selects pods of this node.
        let port = if round % 2 == 0 { 8081 } else { 8080 };
        let object = policy(round / 2 % size.local.min(size.policies), port);
        changed.push(engine.took(|policies| _ = policies.apply(Kind::NetworkPolicy, &object)).await?);
    }
    for (what, took) in [
        ("pod-joins", remote),
        ("local-pod-joins", here),
        ("label-changes", relabelled),
        ("policy-changes", changed),
    ] {
        ensure!(took.iter().any(|t| t.committed.messages > 0), "{what}: nothing was written");
        figures.extend(told(&format!("{name}/{what}"), &took));
    }
    Ok(figures)
}

/// Numbers of pods whose app is one that policies of this node's pods let in.
fn member(n: usize) -> usize {
    NAMESPACES + n % NAMESPACES + n / NAMESPACES * NAMESPACES * APPS
}

async fn gone(engine: &mut Engine, object: &Value) -> Result<()> {
    let text = |key: &str| object["metadata"][key].as_str().context("a name");
    let (namespace, name) = (text("namespace")?, text("name")?);
    engine.took(|policies| policies.remove(Kind::Pod, namespace, name)).await?;
    Ok(())
}

/// Somebody who writes a large table of his own, over and over.
struct Other(Child);

impl Other {
    fn start() -> Result<Self> {
        let rules: String = (0..OTHER_RULES)
            .map(|n| {
                format!("-A KUBE-SERVICES -d 10.96.{}.{}/32 -p tcp --dport 80 -j ACCEPT\n", n >> 8, n & 255)
            })
            .collect();
        let dir = tempfile::tempdir().context("a directory for rules")?.keep();
        let file = dir.join("rules");
        let text = format!("*filter\n:KUBE-SERVICES - [0:0]\n{rules}COMMIT\n");
        std::fs::File::create(&file).and_then(|mut file| file.write_all(text.as_bytes())).context("rules")?;
        let script =
            format!("while :; do iptables-nft-restore --noflush < {} || exit 1; done", file.display());
        let mut child =
            Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().context("sh")?;
        std::thread::sleep(Duration::from_secs(2));
        ensure!(child.try_wait()?.is_none(), "iptables-nft-restore does not run here");
        Ok(Self(child))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Its last restore ends by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
