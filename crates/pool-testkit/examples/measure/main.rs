//! Measures pools on a real server beside bare connections in the same run. `cargo xtask measure` builds and runs it, and
//! shows what it says: a line of JSON for each figure on standard output, what is going on on standard error.

mod contest;
mod progress;
mod report;
mod sampler;
mod stage;
mod watch;
mod worlds;

use std::process::ExitCode;
use std::time::Duration;

use progress::Progress;
use report::Report;
use stage::Stage;
use worlds::{WORLDS, World};

/// Whatever goes wrong.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

const USAGE: u8 = 2;
const INFRASTRUCTURE: u8 = 3;

/// What was asked for.
struct Asked {
    worlds: Vec<&'static World>,
    list: bool,
    seconds: u64,
}

fn main() -> ExitCode {
    let asked = match read(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(USAGE);
        }
    };
    if asked.list {
        for world in WORLDS {
            println!("{:14} {}", world.name, world.about);
        }
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(Fault::from).and_then(|runtime| runtime.block_on(measure(&asked))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(INFRASTRUCTURE)
        }
    }
}

fn read(mut line: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked { worlds: Vec::new(), list: false, seconds: 20 };
    while let Some(word) = line.next() {
        let mut value = || line.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--list" => asked.list = true,
            "--seconds" => {
                let seconds = value()?;
                asked.seconds =
                    seconds.parse().map_err(|_| format!("`{seconds}` is no number of seconds"))?;
            }
            "--world" => {
                let name = value()?;
                let world = WORLDS.iter().find(|world| world.name == name);
                asked.worlds.push(world.ok_or_else(|| unknown(&name))?);
            }
            _ => return Err(format!("`{word}` is not known; there are --world, --seconds and --list")),
        }
    }
    if asked.worlds.is_empty() {
        asked.worlds = WORLDS.iter().collect();
    }
    Ok(asked)
}

fn unknown(name: &str) -> String {
    let names: Vec<&str> = WORLDS.iter().map(|world| world.name).collect();
    format!("there is no world `{name}`; there are {}", names.join(", "))
}

async fn measure(asked: &Asked) -> Result<(), Fault> {
    let mut progress = Progress::new();
    let databases = asked.worlds.iter().map(|world| world.databases).max().unwrap_or_default();
    let stage = Stage::set(databases, &mut progress).await?;
    for world in &asked.worlds {
        let mut report = Report::new(world.name, world.about, &mut progress);
        world.run(&stage, Duration::from_secs(asked.seconds), &mut report).await?;
    }
    progress.clear();
    Ok(())
}
