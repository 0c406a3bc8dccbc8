//! `cargo xtask connections` and `cargo xtask clean`: what runs have left, and its removal. What is whose is told by tags and
//! locks, and decided in `pool_testkit::run`; this shows it.

use std::time::Duration;

use pool_testkit::run::{self, Cleaned, RunId, TaggedConnection};
use pool_testkit::server::{Ephemeral, TestServer, reap_orphans};
use xtask::display::say;
use xtask::failure::Failure;

use crate::kept;
use crate::scratch;

/// As much of a statement as fits into a line.
const QUERY_CHARS: usize = 100;

/// Shows the sessions that carry the tag of a run, and ends them on request.
///
/// # Errors
/// [`Failure::Usage`] when no run can be called so, [`Failure::Infrastructure`] when the server cannot be asked.
pub fn connections(terminate: bool, run: Option<&str>) -> Result<(), Failure> {
    let run = run.map(run_id).transpose()?;
    let run = run.as_ref();
    let Some(server) = running()? else {
        say("no server: the environment names none, and no ephemeral one runs");
        return Ok(());
    };
    say(&format!("server   {}", server.describe()));
    let asked = |why| Failure::while_doing("ask the server for its connections", why);
    let ended = if terminate { run::terminate(&server, run).map_err(asked)? } else { Vec::new() };
    let left = run::connections(&server).map_err(asked)?;
    // One that was ended is often still on its way out.
    let is_left = |one: &&TaggedConnection| !ended.iter().any(|ended| ended.pid == one.pid);
    let left: Vec<&TaggedConnection> =
        left.iter().filter(|one| run.is_none_or(|run| one.run == *run)).filter(is_left).collect();
    for one in &ended {
        say(&format!("ended    {}", line(one)));
    }
    for one in &left {
        say(&line(one));
    }
    let whose =
        if left.iter().any(|one| one.lives) { " (those that live belong to a run that goes on)" } else { "" };
    say(&format!("{} connections of runs{whose}, {} ended", left.len(), ended.len()));
    Ok(())
}

fn run_id(text: &str) -> Result<RunId, Failure> {
    let no_name =
        || Failure::Usage(format!("`{text}` names no run: a run is called by six characters of a-z and 0-9"));
    RunId::parse(text).ok_or_else(no_name)
}

/// Removes what runs have left whose processes are gone.
///
/// # Errors
/// [`Failure::Infrastructure`] when the server cannot be asked, or does not end.
pub fn clean(server: bool) -> Result<(), Failure> {
    scratch::remove_left();
    for reaped in reap_orphans(&Ephemeral::base_directory()) {
        let pid =
            reaped.postmaster_pid.map(|pid| format!(", and ended its process {pid}")).unwrap_or_default();
        say(&format!("removed the server in {}{pid}", reaped.directory.display()));
    }
    if server {
        kept::end()?;
    }
    let Some(server) = running()? else {
        say("no server runs, so there are no databases and no connections to look for");
        return Ok(());
    };
    say(&format!("server   {}", server.describe()));
    let cleaned = remove(&server)?;
    let (connections, databases) = (cleaned.connections.len(), cleaned.databases.len());
    say(&format!("{connections} connections ended, {databases} databases dropped"));
    Ok(())
}

/// Removes from a server what runs have left whose processes are gone, and says what that was.
///
/// # Errors
/// [`Failure::Infrastructure`] when the server cannot be asked.
pub fn remove(server: &TestServer) -> Result<Cleaned, Failure> {
    let cleaned = run::clean(server)
        .map_err(|why| Failure::while_doing("remove what dead runs have left on the server", why))?;
    for one in &cleaned.connections {
        say(&format!("ended    {}", line(one)));
    }
    for name in &cleaned.databases {
        say(&format!("dropped  {name}, whose run is gone"));
    }
    Ok(cleaned)
}

fn running() -> Result<Option<TestServer>, Failure> {
    TestServer::running().map_err(|why| Failure::Infrastructure(format!("no test server: {why}")))
}

/// A session in a line.
fn line(one: &TaggedConnection) -> String {
    let query: String = one.last_query.split_whitespace().collect::<Vec<_>>().join(" ");
    let query: String = query.chars().take(QUERY_CHARS).collect();
    let kind = if one.is_janitor { " (janitor)" } else { "" };
    let lives = if one.lives { "lives" } else { "dead" };
    let TaggedConnection { run, suite, case, pid, state, database, age, .. } = one;
    format!(
        "run {run} {lives}  {suite}::{case}{kind}  pid {pid}  {state} for {}  in {database}  {query}",
        rough(*age)
    )
}

fn rough(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::rough;

    #[test]
    fn ages_are_rough() {
        let told: Vec<String> =
            [0, 119, 120, 7200].into_iter().map(|s| rough(Duration::from_secs(s))).collect();
        assert_eq!(told, ["0 s", "119 s", "2 min", "2 h"]);
    }
}
