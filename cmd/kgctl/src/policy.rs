//! `kgctl policy`.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use kilo_file::read_items;
use kilo_policy::{Evaluator, Finding, Kind, Options, Row, Snapshot, Table, Verdict};

use crate::args::{IcmpEcho, TableArgs, TableOutput};
use crate::error::message;
use crate::{input, out};

/// Prints the truth table of the objects in files.
///
/// # Errors
/// When a file cannot be read or holds something that is no object at all.
pub fn table(args: &TableArgs) -> anyhow::Result<()> {
    let (snapshot, findings) = read(&args.filename)?;
    for finding in &findings {
        out::note(&finding.to_string());
    }
    let options = Options { allow_icmp_echo: args.policy_icmp_echo == IcmpEcho::Allow };
    let evaluator = Evaluator::new(&snapshot, options);
    let externals: Vec<_> = args.external.iter().flatten().copied().collect();
    let table = Table::new(&evaluator, &args.ports, &externals);
    // A table may be much larger than what it is made from: it is written as it is made.
    let mut stdout = BufWriter::new(io::stdout().lock());
    match args.output {
        TableOutput::Text => text(&table, &mut stdout),
        TableOutput::Json => json(&table, &mut stdout),
    }?;
    stdout.flush()?;
    Ok(())
}

fn read(files: &[PathBuf]) -> anyhow::Result<(Snapshot, Vec<Finding>)> {
    let (mut snapshot, mut findings) = (Snapshot::default(), Vec::new());
    for text in input::texts(files)? {
        for item in read_items(&text.origin, &text.bytes) {
            let item = item.map_err(|finding| message(finding.to_string().trim_start_matches("File/")))?;
            // A dump of a cluster holds all sorts of things.
            let Some(kind) = Kind::of(&item.api_version, &item.kind) else { continue };
            let applied = snapshot.apply(kind, &item.object);
            findings.extend(applied.findings);
            if applied.replaced {
                let reason = "stands there more than once; the last one counts";
                findings.push(Finding::new(applied.object, "metadata.name", "", reason));
            }
        }
    }
    Ok((snapshot, findings))
}

fn text(table: &Table<'_, '_>, to: &mut impl Write) -> io::Result<()> {
    let name = table.names().map(str::len).max().unwrap_or_default().max(4);
    writeln!(to, "{:name$}  {:name$}  {:4}  {:10}  {:7}  WHY", "FROM", "TO", "IP", "PORT", "VERDICT")?;
    for row in table.rows() {
        let (from, target, family, probe) = (row.from, row.to, row.family.name(), row.probe.to_string());
        write!(to, "{from:name$}  {target:name$}  {family:4}  {probe:10}  {:7}  ", row.verdict())?;
        why(&row, to)?;
        writeln!(to)?;
    }
    Ok(())
}

/// What each end says; of a connection that is denied, the ends that deny.
fn why(row: &Row<'_, '_>, to: &mut impl Write) -> io::Result<()> {
    let allowed = row.connection.is_allowed();
    let said = |verdict: &Option<Verdict<'_, '_>>| {
        verdict.as_ref().filter(|v| v.allowed == allowed).map(|v| v.because.to_string())
    };
    let ends = [("egress", said(&row.connection.egress)), ("ingress", said(&row.connection.ingress))];
    let said: Vec<_> =
        ends.into_iter().filter_map(|(end, said)| said.map(|said| format!("{end}: {said}"))).collect();
    if said.is_empty() {
        return write!(to, "no policy applies");
    }
    write!(to, "{}", said.join("; "))
}

/// One object whose rows stand on a line each, so that it can be read by line as well.
fn json(table: &Table<'_, '_>, to: &mut impl Write) -> io::Result<()> {
    write!(to, "{{\"rows\":[")?;
    for (n, row) in table.rows().enumerate() {
        write!(to, "{}", if n == 0 { "\n" } else { ",\n" })?;
        serde_json::to_writer(&mut *to, &row)?;
    }
    writeln!(to, "\n]}}")
}
