//! `kg install-cni`, the init container of nodes whose pods Kilo connects itself: it lays down the CNI plugins
//! and the network configuration. It decides nothing about pod ranges, which the agent fills in later.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tracing::info;

use crate::cni;

/// What is added to the names of configurations that are put aside. Container runtimes read only `.conf`,
/// `.conflist` and `.json`.
const ASIDE: &str = ".kilo-saved";

/// Flags of `kg install-cni`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the plugins to install
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub source: PathBuf,
    /// Where the host's container runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = "/host/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// Where the host's container runtime looks for network configurations
    #[arg(long, value_name = "DIR", default_value = "/host/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Name of our network configuration in --conf-dir
    #[arg(long, value_name = "NAME", env = "CNI_CONF_NAME", default_value = "10-kilo.conflist")]
    pub conf_name: String,
    /// The network configuration as JSON, pod ranges left out; a built-in one if not given
    #[arg(long, value_name = "JSON", env = "CNI_NETWORK_CONFIG")]
    pub config: Option<String>,
    /// What becomes of other network configurations, of which the runtime would use the first by name
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Others::Rename)]
    pub others: Others,
    /// Puts our plugin into the chain, which tells the agent of pods before they start; off leaves the configuration as
    /// it is given
    #[arg(long, value_enum, value_name = "MODE", default_value_t = NetworkPolicy::Auto)]
    pub network_policy: NetworkPolicy,
}

/// Values of `--network-policy`, those of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NetworkPolicy {
    /// The agent decides
    Auto,
    /// In force
    On,
    /// Only told of
    Audit,
    /// Nothing
    Off,
}

/// Values of `--others`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Others {
    /// Put them aside under another name, so that they can be had back
    Rename,
    /// Delete every file in the directory, as Kilo's own init container does
    Delete,
    /// Leave them alone
    Keep,
}

/// Installs the plugins, then the configuration, then deals with the others: at every moment the runtime finds
/// either what was there before or something complete. What is right already is not touched.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        Path::new(&args.conf_name).file_name().is_some_and(|name| *name == *args.conf_name),
        "--conf-name {:?} is not a file name",
        args.conf_name
    );
    let mut template = template(args.config.as_deref())?;
    install_plugins(&args.source, &args.bin_dir)?;
    if args.network_policy != NetworkPolicy::Off {
        install_own(&args.bin_dir)?;
        chain(&mut template);
    }
    fs::create_dir_all(&args.conf_dir).with_context(|| format!("creating {}", args.conf_dir.display()))?;
    install_config(&args.conf_dir.join(&args.conf_name), &template)?;
    match args.others {
        Others::Keep => Ok(()),
        Others::Rename => each_other(args, is_config, put_aside),
        Others::Delete => each_other(args, |_| true, delete),
    }
}

/// The configuration to install, without ranges if the text has none.
fn template(text: Option<&str>) -> anyhow::Result<Value> {
    let Some(text) = text else { return Ok(built_in()) };
    let value: Value = serde_json::from_str(text).context("reading the network configuration (--config)")?;
    ensure!(
        value.get("plugins").is_some_and(Value::is_array),
        "the network configuration (--config) has no list \"plugins\""
    );
    Ok(value)
}

/// Puts our plugin at the end of the chain, unless it is there. It routes between the pods of the bridge that the chain
/// has.
fn chain(config: &mut Value) {
    let Some(plugins) = config.get_mut("plugins").and_then(Value::as_array_mut) else { return };
    let is_a = |plugin: &&Value, kind: &str| plugin.get("type").and_then(Value::as_str) == Some(kind);
    if plugins.iter().any(|plugin| is_a(&plugin, cni::NAME)) {
        return;
    }
    let mut ours = json!({ "type": cni::NAME });
    if let Some(bridge) = plugins.iter().find(|plugin| is_a(plugin, "bridge")) {
        // The bridge plugin's own default.
        ours["bridge"] = bridge.get("bridge").cloned().unwrap_or_else(|| json!("cni0"));
    }
    plugins.push(ours);
}

/// Kilo's configuration: a bridge for the pods, host ports.
fn built_in() -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "kilo",
        "plugins": [
            {
                "name": "kubernetes",
                "type": "bridge",
                "bridge": "kube-bridge",
                "isDefaultGateway": true,
                "forceAddress": true,
                "mtu": 1420,
                "ipam": { "type": "host-local" }
            },
            { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }
        ]
    })
}

fn install_plugins(source: &Path, target: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    let files = files_of(source)?;
    ensure!(!files.is_empty(), "no plugins in {}", source.display());
    for from in files {
        let Some(name) = from.file_name() else { continue };
        install_plugin(&from, &target.join(name))?;
    }
    Ok(())
}

/// This program is a plugin, too, under a name of its own.
fn install_own(target: &Path) -> anyhow::Result<()> {
    // Without /proc there is the name that it was called by.
    let program = std::env::current_exe().ok().or_else(|| std::env::args_os().next().map(PathBuf::from));
    install_plugin(&program.context("finding this program")?, &target.join(cni::NAME))
}

fn install_plugin(from: &Path, to: &Path) -> anyhow::Result<()> {
    let plugin = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if holds(to, &plugin, 0o755)? {
        return Ok(());
    }
    // A plugin may be running: its file is replaced, never written to.
    replace(to, &plugin, 0o755)?;
    info!(file = %to.display(), "Installed a CNI plugin");
    Ok(())
}

/// Writes the template with the ranges that the file there has: a restart of the pod must not leave the node
/// without ranges until the agent runs.
fn install_config(path: &Path, template: &Value) -> anyhow::Result<()> {
    let mut wanted = template.clone();
    let mut mode = 0o644;
    match fs::read(path) {
        Ok(old) => {
            // What cannot be read as JSON is of no use to the runtime either.
            if let Ok(old) = serde_json::from_slice::<Value>(&old) {
                if let Some(ranges) = ranges(&old) {
                    set_ranges(&mut wanted, ranges);
                }
                if old == wanted {
                    return Ok(());
                }
            }
            let metadata = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
            mode = metadata.permissions().mode() & 0o777;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    }
    replace(path, format!("{wanted}\n").as_bytes(), mode)?;
    info!(file = %path.display(), "Installed the network configuration");
    Ok(())
}

/// The first ranges with something in them.
fn ranges(config: &Value) -> Option<&Value> {
    config
        .get("plugins")?
        .as_array()?
        .iter()
        .filter_map(|plugin| plugin.get("ipam")?.get("ranges"))
        .find(|ranges| ranges.as_array().is_some_and(|list| !list.is_empty()))
}

/// Gives every plugin that assigns addresses these ranges, as the agent does.
fn set_ranges(config: &mut Value, ranges: &Value) {
    let plugins = config.get_mut("plugins").and_then(Value::as_array_mut);
    for plugin in plugins.into_iter().flatten() {
        if let Some(ipam) = plugin.get_mut("ipam").and_then(Value::as_object_mut) {
            ipam.insert("ranges".into(), ranges.clone());
        }
    }
}

fn is_config(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|known| extension == *known))
}

/// Does something with every chosen file of the directory but ours; one that fails does not spare the next.
fn each_other(
    args: &Args,
    chosen: impl Fn(&Path) -> bool,
    act: impl Fn(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for path in files_of(&args.conf_dir)? {
        if path.file_name().is_some_and(|name| *name == *args.conf_name) || !chosen(&path) {
            continue;
        }
        if let Err(error) = act(&path) {
            failures.push(format!("{error:#}"));
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

fn put_aside(path: &Path) -> anyhow::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(ASIDE);
    let to = PathBuf::from(name);
    fs::rename(path, &to).with_context(|| format!("renaming {} to {}", path.display(), to.display()))?;
    info!(file = %path.display(), to = %to.display(), "Put another network configuration aside");
    Ok(())
}

fn delete(path: &Path) -> anyhow::Result<()> {
    fs::remove_file(path).with_context(|| format!("deleting {}", path.display()))?;
    info!(file = %path.display(), "Deleted another network configuration");
    Ok(())
}

/// The files of a directory, links to files included, by name.
fn files_of(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether the file has this content and mode.
fn holds(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<bool> {
    let reading = || format!("reading {}", path.display());
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(reading),
    };
    let metadata = file.metadata().with_context(reading)?;
    if metadata.len() != content.len() as u64 || metadata.permissions().mode() & 0o777 != mode {
        return Ok(false);
    }
    let mut there = Vec::with_capacity(content.len());
    file.read_to_end(&mut there).with_context(reading)?;
    Ok(there == content)
}

/// Writes a new file beside it and renames that, so that nobody ever sees half of it.
fn replace(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let writing = || format!("writing {}", path.display());
    let name = path.file_name().context("a file without a name")?.to_string_lossy();
    let new = path.with_file_name(format!(".{name}.kilo-new"));
    // What a run that was broken off has left.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(writing),
        Ok(()) | Err(_) => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).with_context(writing)?;
    file.write_all(content).with_context(writing)?;
    // The mode above is subject to the umask.
    file.set_permissions(fs::Permissions::from_mode(mode)).with_context(writing)?;
    file.sync_all().with_context(writing)?;
    fs::rename(&new, path).with_context(writing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host and an image in a directory of the test's own.
    struct Fixture {
        root: PathBuf,
        args: Args,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("kilo-install-cni-{}-{name}", std::process::id()));
            let _absent = fs::remove_dir_all(&root);
            let args = Args {
                source: root.join("image"),
                bin_dir: root.join("host/bin"),
                conf_dir: root.join("host/net.d"),
                conf_name: "10-kilo.conflist".into(),
                config: None,
                others: Others::Rename,
                network_policy: NetworkPolicy::Off,
            };
            fs::create_dir_all(&args.source).unwrap();
            fs::create_dir_all(&args.conf_dir).unwrap();
            fs::write(args.source.join("bridge"), "#!bridge").unwrap();
            fs::write(args.source.join("portmap"), "#!portmap").unwrap();
            Self { root, args }
        }

        fn conf(&self, name: &str) -> PathBuf {
            self.args.conf_dir.join(name)
        }

        fn config(&self) -> Value {
            serde_json::from_slice(&fs::read(self.conf("10-kilo.conflist")).unwrap()).unwrap()
        }

        fn listing(&self) -> Vec<String> {
            files_of(&self.args.conf_dir)
                .unwrap()
                .iter()
                .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
                .collect()
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _best_effort = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn lays_down_executable_plugins_and_the_built_in_configuration() {
        let fixture = Fixture::new("fresh");
        run(&fixture.args).unwrap();
        for name in ["bridge", "portmap"] {
            let path = fixture.args.bin_dir.join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("#!{name}"));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        }
        assert_eq!(fixture.config(), built_in());
        assert_eq!(fixture.listing(), ["10-kilo.conflist"]);
    }

    #[test]
    fn our_plugin_is_the_last_of_the_chain_unless_policies_are_off() {
        let mut fixture = Fixture::new("chain");
        fixture.args.config =
            Some(r#"{"plugins": [{"type": "bridge", "bridge": "br7"}, {"type": "portmap"}]}"#.into());
        run(&fixture.args).unwrap();
        assert!(!fixture.args.bin_dir.join("kilo").exists());
        assert_eq!(fixture.config()["plugins"].as_array().unwrap().len(), 2);
        fixture.args.network_policy = NetworkPolicy::Auto;
        for _ in 0..2 {
            run(&fixture.args).unwrap();
            let plugins = fixture.config()["plugins"].clone();
            assert_eq!(plugins.as_array().unwrap().len(), 3);
            assert_eq!(plugins[2], json!({"type": "kilo", "bridge": "br7"}));
            let program = fs::read(std::env::current_exe().unwrap()).unwrap();
            assert!(holds(&fixture.args.bin_dir.join("kilo"), &program, 0o755).unwrap());
        }
        // What the list itself has is left as it is.
        fixture.args.config = Some(r#"{"plugins": [{"type": "kilo"}, {"type": "tuning"}]}"#.into());
        run(&fixture.args).unwrap();
        assert_eq!(fixture.config()["plugins"], json!([{"type": "kilo"}, {"type": "tuning"}]));
    }

    #[test]
    fn a_second_run_touches_nothing() {
        let fixture = Fixture::new("twice");
        run(&fixture.args).unwrap();
        let files = [fixture.args.bin_dir.join("bridge"), fixture.conf("10-kilo.conflist")];
        let inodes =
            || files.each_ref().map(|file| std::os::unix::fs::MetadataExt::ino(&fs::metadata(file).unwrap()));
        let before = inodes();
        run(&fixture.args).unwrap();
        assert_eq!(inodes(), before);
    }

    #[test]
    fn a_running_plugin_is_replaced_by_rename() {
        let fixture = Fixture::new("upgrade");
        run(&fixture.args).unwrap();
        let old = File::open(fixture.args.bin_dir.join("bridge")).unwrap();
        fs::write(fixture.args.source.join("bridge"), "#!newer!").unwrap();
        run(&fixture.args).unwrap();
        assert_eq!(fs::read_to_string(fixture.args.bin_dir.join("bridge")).unwrap(), "#!newer!");
        assert_eq!(std::io::read_to_string(old).unwrap(), "#!bridge");
    }

    #[test]
    fn ranges_survive_a_restart_and_a_change_of_the_template() {
        let mut fixture = Fixture::new("ranges");
        run(&fixture.args).unwrap();
        let ranges = json!([[{ "subnet": "10.2.1.0/24" }], [{ "subnet": "fd00:10:2::/64" }]]);
        let mut with_ranges = built_in();
        set_ranges(&mut with_ranges, &ranges);
        fs::write(fixture.conf("10-kilo.conflist"), with_ranges.to_string()).unwrap();

        run(&fixture.args).unwrap();
        assert_eq!(fixture.config(), with_ranges);

        let mut changed = built_in();
        changed["plugins"][0]["mtu"] = json!(1300);
        fixture.args.config = Some(changed.to_string());
        run(&fixture.args).unwrap();
        assert_eq!(fixture.config()["plugins"][0]["mtu"], 1300);
        assert_eq!(fixture.config()["plugins"][0]["ipam"]["ranges"], ranges);
        // The plugin that assigns no addresses gets none.
        assert_eq!(fixture.config()["plugins"][1].get("ipam"), None);
    }

    #[test]
    fn a_broken_file_is_replaced() {
        let fixture = Fixture::new("broken");
        fs::write(fixture.conf("10-kilo.conflist"), "{").unwrap();
        fs::write(fixture.conf(".10-kilo.conflist.kilo-new"), "left over").unwrap();
        run(&fixture.args).unwrap();
        assert_eq!(fixture.config(), built_in());
        assert_eq!(fixture.listing(), ["10-kilo.conflist"]);
    }

    #[test]
    fn others_are_put_aside_deleted_or_kept() {
        let mut fixture = Fixture::new("others");
        fs::create_dir(fixture.conf("plugins.d.conf")).unwrap();
        let others = ["00-other.conf", "05-cloud.conflist", "99-loopback.json", "kubeconfig"];
        let write = |fixture: &Fixture| {
            for name in others {
                fs::write(fixture.conf(name), name).unwrap();
            }
        };

        fixture.args.others = Others::Keep;
        write(&fixture);
        run(&fixture.args).unwrap();
        assert_eq!(fixture.listing().len(), 5);

        fixture.args.others = Others::Rename;
        run(&fixture.args).unwrap();
        assert_eq!(
            fixture.listing(),
            [
                "00-other.conf.kilo-saved",
                "05-cloud.conflist.kilo-saved",
                "10-kilo.conflist",
                "99-loopback.json.kilo-saved",
                "kubeconfig"
            ]
        );
        assert_eq!(fs::read_to_string(fixture.conf("00-other.conf.kilo-saved")).unwrap(), "00-other.conf");

        fixture.args.others = Others::Delete;
        write(&fixture);
        run(&fixture.args).unwrap();
        assert_eq!(fixture.listing(), ["10-kilo.conflist"]);
        assert!(fixture.conf("plugins.d.conf").is_dir());
    }

    #[test]
    fn bad_input_is_named_and_changes_nothing() {
        let mut fixture = Fixture::new("bad");
        let said = |fixture: &Fixture| format!("{:#}", run(&fixture.args).unwrap_err());
        fixture.args.config = Some("{\"name\":".into());
        assert!(said(&fixture).contains("--config"), "{}", said(&fixture));
        fixture.args.config = Some("{\"name\":\"kilo\"}".into());
        assert!(said(&fixture).contains("plugins"), "{}", said(&fixture));
        fixture.args.config = None;
        fixture.args.conf_name = "../10-kilo.conflist".into();
        assert!(said(&fixture).contains("--conf-name"), "{}", said(&fixture));
        fixture.args.conf_name = "10-kilo.conflist".into();
        fixture.args.source = fixture.root.join("nowhere");
        assert!(said(&fixture).contains("nowhere"), "{}", said(&fixture));
        assert!(fixture.listing().is_empty());
    }
}
