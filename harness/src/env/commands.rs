//! `chronibench env`: list, check, sync, bundle and lock.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use clap::Subcommand;
use comfy_table::Table;
use serde::Deserialize;

use super::{
    Environment, RECORD, RIVALS, Rival, folder,
    tools::{Tools, finish, python},
};
use crate::{
    error::{AtPath, Error, Exit, Result},
    kernel::references::on_path,
    scenario::source::suggestion,
};

/// What can be done with environments.
#[derive(Clone, Debug, Subcommand)]
pub enum EnvCommand {
    /// Show every rival and whether it is installed, or one rival's options.
    #[command(after_help = "Examples:\n  chronibench env list\n  chronibench env list trl")]
    List {
        /// Rival.
        name: Option<String>,
    },
    /// Say what of an environment is missing or of another version than locked. Exit code 5 if anything is.
    #[command(after_help = "Examples:\n  chronibench env check\n  chronibench env check hf-cpu")]
    Check {
        /// Rivals; every installed one when left out.
        names: Vec<String>,
    },
    /// Make a rival's environment.
    #[command(after_help = SYNC_EXAMPLES)]
    Sync {
        /// Rival.
        name: String,
        /// The Python to make it with, or to take packages from.
        #[arg(long, value_name = "PYTHON")]
        python: Option<PathBuf>,
        /// Unpack this bundle; PyTorch and the rest of the base are those of the Python.
        #[arg(long, value_name = "FILE", conflicts_with = "reuse")]
        bundle: Option<PathBuf>,
        /// Install nothing: the Python has it all.
        #[arg(long)]
        reuse: bool,
    },
    /// Pack what a rival needs beyond PyTorch, for a machine without network.
    #[command(after_help = BUNDLE_EXAMPLES)]
    Bundle {
        /// Rival.
        name: String,
        /// File to write.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The Python whose pip downloads.
        #[arg(long, value_name = "PYTHON")]
        python: Option<PathBuf>,
        /// Packages of the base that the other machine lacks.
        #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
        also: Vec<String>,
    },
    /// Resolve a rival's `requirements.in` again, in the sources of this program.
    #[command(after_help = "Example:\n  chronibench env lock trl --python python3.12")]
    Lock {
        /// Rival.
        name: String,
        /// A Python 3.12.
        #[arg(long, value_name = "PYTHON")]
        python: Option<PathBuf>,
        /// Folder of the rivals.
        #[arg(long, value_name = "DIR", default_value = "baselines")]
        dir: PathBuf,
    },
}

const BUNDLE_EXAMPLES: &str = "\
Examples:
  chronibench env bundle trl -o trl.txz
  chronibench env bundle trl -o trl.txz --also pydantic,tzdata   where `env sync --bundle` there says that they are missing";

const SYNC_EXAMPLES: &str = "\
Examples:
  chronibench env sync hf-cpu                                  a new environment, by uv or pip
  chronibench env sync trl --bundle trl.txz --python python3   on a GPU machine without network
  chronibench env sync hf-cpu --reuse --python /opt/venv/bin/python";

/// Runs a command.
///
/// # Errors
/// No such rival; the environment cannot be made; something is missing.
pub fn run(command: &EnvCommand) -> Result<Exit> {
    match command {
        EnvCommand::List { name: None } => list(),
        EnvCommand::List { name: Some(name) } => options(named(name)?),
        EnvCommand::Check { names } => check(names)?,
        EnvCommand::Sync { name, python, bundle, reuse } => {
            sync(named(name)?, python.as_deref(), bundle.as_deref(), *reuse)?;
        }
        EnvCommand::Bundle { name, output, python: by, also } => {
            bundle(named(name)?, output, by.as_deref(), also)?;
        }
        EnvCommand::Lock { name, python: by, dir } => lock(named(name)?, by.as_deref(), dir)?,
    }
    Ok(Exit::Pass)
}

fn named(name: &str) -> Result<&'static Rival> {
    Rival::named(name).ok_or_else(|| {
        let known: Vec<&str> = RIVALS.iter().map(|r| r.name).collect();
        Error::usage(format!("no rival '{name}'"), "chronibench env").hint(suggestion(name, &known))
    })
}

fn list() {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["rival", "runs on", "installed", "what it is"]);
    for rival in RIVALS {
        let known = rival.describe();
        let installed = match Environment::find(&rival) {
            Ok(found) => format!("{}: {}", found.made, found.python.display()),
            Err(missing) => format!("no: {}", missing.hint),
        };
        table.add_row([rival.name.into(), known.devices.join(", "), installed, known.title]);
    }
    println!("{table}");
}

fn options(rival: &Rival) {
    println!("{}: {}", rival.name, rival.describe().title);
    for (name, option) in rival.describe().options {
        let values: Vec<String> = option.values.iter().map(ToString::to_string).collect();
        let values = if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) };
        println!("  {name}: {}{values}\n      {}", option.default, option.help);
    }
}

#[derive(Deserialize)]
struct Checked {
    python: String,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    locked: String,
    found: Option<String>,
    base: bool,
    same: bool,
}

impl Package {
    /// A base of another version is the machine's own, and recorded as such; all else must be as locked.
    fn is_wrong(&self) -> bool {
        self.found.is_none() && !self.is_library() || (!self.same && !self.base)
    }

    /// CUDA's libraries come with PyTorch in one way or another.
    fn is_library(&self) -> bool {
        self.base && (self.name.starts_with("nvidia-") || self.name.starts_with("cuda-"))
    }
}

fn look(rival: &Rival, environment: &Environment) -> Result<Checked> {
    let tools = Tools::new(rival)?;
    let answer = tools.run(environment, &["check", &tools.lock()])?;
    serde_json::from_str(&answer)
        .map_err(|e| Error::environment(format!("no answer: {e}"), environment.python.display().to_string()))
}

/// Prints what differs; the number of packages that stand in the way.
fn report(rival: &Rival, environment: &Environment) -> Result<usize> {
    let checked = look(rival, environment)?;
    let odd: Vec<&Package> = checked.packages.iter().filter(|p| !p.same && !p.is_library()).collect();
    let total = checked.packages.len();
    println!(
        "{}: Python {}, {} of {total} packages as locked",
        rival.name,
        checked.python,
        total - odd.len()
    );
    for p in &odd {
        let found = p.found.as_deref().unwrap_or("missing");
        let why = if p.is_wrong() { "" } else { ", the machine's own" };
        println!("  {} {found}, locked {}{why}", p.name, p.locked);
    }
    Ok(odd.iter().filter(|p| p.is_wrong()).count())
}

fn check(names: &[String]) -> Result<()> {
    let rivals = match names {
        [] => RIVALS.iter().filter(|r| r.has_packages() && Environment::find(r).is_ok()).collect(),
        names => names.iter().map(|n| named(n)).collect::<Result<Vec<_>>>()?,
    };
    if rivals.is_empty() {
        println!("no rival is installed; `chronibench env list` shows them");
    }
    let mut wrong = Vec::new();
    for rival in rivals {
        match Environment::find(rival) {
            Ok(found) if report(rival, &found)? == 0 => {}
            Ok(_) => wrong.push(rival.name),
            Err(missing) => {
                println!("{}: {} ({})", rival.name, missing.why, missing.hint);
                wrong.push(rival.name);
            }
        }
    }
    match wrong.first() {
        None => Ok(()),
        Some(first) => Err(Error::environment("an environment is not as locked", wrong.join(", "))
            .hint(format!("chronibench env sync {first}"))),
    }
}

fn sync(rival: &Rival, by: Option<&Path>, bundle: Option<&Path>, reuse: bool) -> Result<()> {
    if !rival.has_packages() {
        println!("{} needs nothing but Python", rival.name);
        return Ok(());
    }
    let dir = folder(rival)?;
    // What is there without a record is the rest of an attempt that failed.
    if dir.exists() {
        std::fs::remove_dir_all(&dir).at(&dir)?;
    }
    std::fs::create_dir_all(&dir).at(&dir)?;
    let bare = |python, made: &str| Environment { python, site: None, libraries: None, made: made.into() };
    let python = python(by)?;
    let environment = match (bundle, reuse) {
        (Some(file), _) => unpacked(rival, bare(python, "bundle"), file, &dir)?,
        (None, true) => bare(python, "reuse"),
        (None, false) => bare(installed(rival, &python, &dir)?, "venv"),
    };
    let wrong = report(rival, &environment)?;
    if wrong > 0 {
        let hint = match bundle {
            Some(_) => format!("carry them too: chronibench env bundle {} --also NAME,… -o FILE", rival.name),
            None => "install them there, or let `chronibench env sync` make an environment of its own".into(),
        };
        return Err(Error::environment(format!("{wrong} packages are not as locked"), rival.name).hint(hint));
    }
    let (record, part) = (dir.join(RECORD), dir.join(format!("{RECORD}.part")));
    std::fs::write(&part, serde_json::to_vec_pretty(&environment).expect("plain data")).at(&part)?;
    std::fs::rename(&part, &record).at(&record)?;
    println!("{} is ready: {}", rival.name, dir.display());
    Ok(())
}

fn unpacked(rival: &Rival, base: Environment, file: &Path, dir: &Path) -> Result<Environment> {
    let text = |p: &Path| p.display().to_string();
    let tools = Tools::new(rival)?;
    let file = std::path::absolute(file).at(file)?;
    tools.run(&base, &["unpack", rival.name, &rival.lock_sha256(), &text(&file), &text(dir)])?;
    let libraries = Some(dir.join("lib")).filter(|p| p.is_dir());
    Ok(Environment { site: Some(dir.join("site")), libraries, ..base })
}

/// A virtual environment with everything that the lock names, by uv where there is one; its Python.
fn installed(rival: &Rival, python: &Path, dir: &Path) -> Result<PathBuf> {
    let tools = Tools::new(rival)?;
    let (venv, lock) = (dir.join("venv"), tools.lock());
    let inside = venv.join("bin/python");
    println!("{}: installing into {}", rival.name, venv.display());
    let by = |program: &Path, args: &[&str]| finish(Command::new(program).args(args), program).map(drop);
    let (at, own) = (venv.display().to_string(), inside.display().to_string());
    if let Some(uv) = on_path("uv") {
        by(&uv, &["venv", "--python", "3.12", &at])?;
        by(&uv, &["pip", "install", "--python", &own, "--no-deps", "--require-hashes", "-r", &lock])?;
    } else {
        by(python, &["-m", "venv", &at])?;
        by(
            &inside,
            &["-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", &lock],
        )?;
    }
    Ok(inside)
}

fn bundle(rival: &Rival, out: &Path, by: Option<&Path>, also: &[String]) -> Result<()> {
    let tools = Tools::new(rival)?;
    let environment = Environment { python: python(by)?, site: None, libraries: None, made: String::new() };
    let out = std::path::absolute(out).at(out)?.display().to_string();
    let (lock, hash, also) = (tools.lock(), rival.lock_sha256(), also.join(","));
    print!("{}", tools.run(&environment, &["pack", rival.name, &lock, &hash, &out, &also])?);
    println!("there: chronibench env sync {} --bundle FILE --python PYTHON", rival.name);
    Ok(())
}

fn lock(rival: &Rival, by: Option<&Path>, dir: &Path) -> Result<()> {
    let source = dir.join(rival.name).join("requirements.in");
    if !source.is_file() {
        let hint = "run it in the repository, or name the folder with --dir";
        return Err(Error::usage("no requirements.in", source.display().to_string()).hint(hint));
    }
    let environment = Environment { python: python(by)?, site: None, libraries: None, made: String::new() };
    let out = source.with_extension("txt").display().to_string();
    Tools::new(rival)?.run(&environment, &["lock", rival.name, &source.display().to_string(), &out])?;
    println!("{out}: build the program again, it carries its locks with it");
    Ok(())
}
