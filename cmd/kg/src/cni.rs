//! `kg` as a CNI plugin, the last of a chain: it tells the agent which pod has which addresses and returns when the
//! agent has put that in force, so that a pod's first packet finds its policy. It never fails a pod: an address that
//! the agent does not know of is held closed by the rules that are there.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kilo_host::pods::{self, Call};
use serde::Deserialize;
use serde_json::{Value, json};

/// What makes this program a plugin: runtimes set it, nobody else does.
pub const COMMAND: &str = "CNI_COMMAND";
/// The name of this plugin, in configurations and as a file.
pub const NAME: &str = "kilo";
/// Versions of the specification whose results pass through here unchanged.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// A configuration with its result is a few kilobytes.
const MAX: u64 = 1 << 20;
/// How long a pod may wait for the agent, and its end.
const ADD: Duration = Duration::from_secs(2);
const DEL: Duration = Duration::from_millis(500);

/// Codes of the specification.
const INCOMPATIBLE: u32 = 1;
const NO_ENVIRONMENT: u32 = 4;
const BROKEN: u32 = 6;
const INVALID: u32 = 7;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    cni_version: String,
    prev_result: Option<Value>,
    /// The bridge whose pods are routed; none where that is another's business.
    bridge: Option<String>,
    #[serde(default = "socket")]
    socket: PathBuf,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    attachments: Vec<Attachment>,
}

#[derive(Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container: String,
}

fn socket() -> PathBuf {
    pods::PodsConfig::default().socket
}

/// Why a call failed.
#[derive(Debug)]
struct Failure(u32, String);

/// Carries out the call that environment and input say.
pub fn main() -> ExitCode {
    let environment = std::env::vars().filter(|(name, _)| name.starts_with("CNI_")).collect();
    let mut input = Vec::new();
    let read = std::io::stdin().take(MAX).read_to_end(&mut input);
    let answer = match read {
        Ok(_) => call(&environment, &input),
        Err(error) => Err(Failure(BROKEN, format!("reading the configuration: {error}"))),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(Failure(code, why)) => {
            let version = serde_json::from_slice::<Config>(&input).map(|config| config.cni_version);
            let version = version.ok().filter(|version| !version.is_empty());
            let answer = json!({
                "cniVersion": version.unwrap_or_else(|| VERSIONS[0].to_owned()), "code": code, "msg": why,
            });
            (answer.to_string(), ExitCode::FAILURE)
        }
    };
    // A runtime that does not listen learns it from the exit code.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

fn call(environment: &BTreeMap<String, String>, input: &[u8]) -> Result<String, Failure> {
    let variable = |name: &str| {
        let value = environment.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| Failure(NO_ENVIRONMENT, format!("{name} is not set")))
    };
    let command = variable(COMMAND)?.as_str();
    if command == "VERSION" {
        let newest = VERSIONS[VERSIONS.len() - 1];
        return Ok(json!({"cniVersion": newest, "supportedVersions": VERSIONS}).to_string());
    }
    let config: Config = serde_json::from_slice(input)
        .map_err(|error| Failure(BROKEN, format!("reading the configuration: {error}")))?;
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        let why = format!("version {:?} is none of {}", config.cni_version, VERSIONS.join(", "));
        return Err(Failure(INCOMPATIBLE, why));
    }
    match command {
        "ADD" => {
            let Some(result) = &config.prev_result else {
                let why = format!("{NAME} has to stand in a list behind the plugin that gives addresses");
                return Err(Failure(INVALID, why));
            };
            let (container, ifname) = (variable("CNI_CONTAINERID")?, variable("CNI_IFNAME")?);
            let args = environment.get("CNI_ARGS").cloned().unwrap_or_default();
            add(&config, result, container, ifname, args);
            Ok(result.to_string())
        }
        "DEL" => {
            let (container, ifname) = (variable("CNI_CONTAINERID")?, variable("CNI_IFNAME")?);
            let call = Call::Del { container: container.clone(), ifname: ifname.clone() };
            let told = tell(&config, &call, DEL);
            if let Some(result) = &config.prev_result {
                if !told {
                    report(pods::hold(result));
                }
                report(pods::release(config.bridge.as_deref(), result));
            }
            Ok(String::new())
        }
        "GC" => {
            let containers =
                config.attachments.iter().map(|attachment| attachment.container.clone()).collect();
            tell(&config, &Call::Gc { containers }, DEL);
            Ok(String::new())
        }
        // A pod that the agent does not know of is held, which is as it should be.
        "CHECK" | "STATUS" => Ok(String::new()),
        other => Err(Failure(NO_ENVIRONMENT, format!("{COMMAND} is {other:?}"))),
    }
}

fn add(config: &Config, result: &Value, container: &str, ifname: &str, args: String) {
    if let Some(bridge) = &config.bridge {
        report(pods::route_through(bridge, result));
    }
    let call = Call::Add {
        container: container.to_owned(),
        ifname: ifname.to_owned(),
        args,
        result: result.clone(),
    };
    if !tell(config, &call, ADD) {
        // The rules may still know a pod that had the address before.
        report(pods::hold(result));
    }
}

/// Tells the agent; whether it is in force.
fn tell(config: &Config, call: &Call, limit: Duration) -> bool {
    match pods::tell(&config.socket, call, limit) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("kilo: the agent does not answer at {}: {error}", config.socket.display());
            false
        }
    }
}

/// What does not work here is put right by the agent, or is held; runtimes log what is said.
fn report<E: std::error::Error>(result: Result<(), E>) {
    if let Err(error) = result {
        let mut text = format!("kilo: {error}");
        let mut cause = error.source();
        while let Some(next) = cause {
            text.push_str(&format!(": {next}"));
            cause = next.source();
        }
        eprintln!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, config: &Value) -> Result<String, Failure> {
        let variables = [(COMMAND, command), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        call(&environment, config.to_string().as_bytes())
    }

    fn config() -> Value {
        json!({"cniVersion": "0.4.0", "name": "kilo", "type": "kilo", "socket": "/nowhere/kilo.sock"})
    }

    #[test]
    fn the_result_passes_through_though_no_agent_answers() {
        let mut config = config();
        let result = json!({"cniVersion": "0.4.0", "ips": [], "dns": {"x": 1}});
        config["prevResult"] = result.clone();
        let printed = run("ADD", &config).expect("a pod starts");
        assert_eq!(serde_json::from_str::<Value>(&printed).expect("JSON"), result);
        for command in ["DEL", "CHECK", "STATUS", "GC"] {
            assert_eq!(run(command, &config).expect(command), "");
        }
    }

    #[test]
    fn what_is_wrong_with_the_call_is_said() {
        assert_eq!(run("ADD", &config()).expect_err("no result").0, INVALID);
        assert_eq!(run("DANCE", &config()).expect_err("unknown").0, NO_ENVIRONMENT);
        assert_eq!(run("ADD", &json!({"cniVersion": "9.9.9"})).expect_err("version").0, INCOMPATIBLE);
        assert_eq!(run("ADD", &json!([])).expect_err("no object").0, BROKEN);
        assert_eq!(call(&BTreeMap::new(), b"").expect_err("nothing").0, NO_ENVIRONMENT);
        assert!(run("VERSION", &json!({})).expect("versions").contains("\"supportedVersions\""));
    }
}
