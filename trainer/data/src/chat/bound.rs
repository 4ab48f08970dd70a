//! Templates in which no variable holds more than could be written.
//!
//! Values share their parts: a list that is put twice into a list, or added to itself, forty times over takes a few bytes and has no
//! end as text. The engine's `~`, filters, sums and comparisons go through such a value before they pay for it, and in many places.
//! So whatever is stored is paid for as if it were written, and likewise what a product makes: a value that is not stored has no
//! more in it than the template's own text could name.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use minijinja::{
    AutoEscape, Environment, Error, State, Value,
    machinery::{self, CompiledTemplate, Instruction, Instructions, TemplateConfig},
    syntax::SyntaxConfig,
};

use super::{NAME, python};

pub(super) const FILTER: &str = "_bounded";

/// The filter, which returns what it is given.
pub(super) fn bounded(state: &State, value: Value) -> Result<Value, Error> {
    // The engine has been paid for texts.
    if value.as_object().is_some() {
        python::pay(state, &value, 0)?;
    }
    Ok(value)
}

/// A template as the engine runs it.
pub(super) enum Program {
    Kept(&'static CompiledTemplate<'static>),
    Text(String),
}

/// Programs kept for the rest of the process, by their text: they borrow it. A process has few, unless it is a fuzzer.
static KEPT: Mutex<Option<HashMap<&'static str, &'static CompiledTemplate<'static>>>> = Mutex::new(None);

/// Programs that are kept; others are compiled whenever they run.
const MOST: usize = 64;

impl Program {
    /// # Errors
    /// The text is no Jinja.
    pub(super) fn new(text: String) -> Result<Self, Error> {
        compiled(&text)?;
        let mut kept = KEPT.lock().unwrap_or_else(|e| e.into_inner());
        let kept = kept.get_or_insert_default();
        if let Some(program) = kept.get(&*text) {
            return Ok(Self::Kept(program));
        }
        if kept.len() == MOST {
            return Ok(Self::Text(text));
        }
        let text: &'static str = text.leak();
        let program: &'static _ = Box::leak(Box::new(compiled_in_bounds(text)?));
        kept.insert(text, program);
        Ok(Self::Kept(program))
    }

    /// # Errors
    /// The template fails, or has no fuel left.
    pub(super) fn render(&self, env: &Environment<'_>, root: Value) -> Result<String, Error> {
        match self {
            Self::Kept(program) => run(program, env, root),
            Self::Text(text) => run(&compiled_in_bounds(text)?, env, root),
        }
    }
}

fn run<'a>(
    program: &'a CompiledTemplate<'a>,
    env: &'a Environment<'a>,
    root: Value,
) -> Result<String, Error> {
    let mut text = String::with_capacity(program.buffer_size_hint);
    let mut out = machinery::make_string_output(&mut text);
    machinery::eval(env, &program.instructions, root, &program.blocks, &mut out, AutoEscape::None)?;
    drop(out);
    Ok(text)
}

fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("Jinja's own delimiters")
}

fn compiled(text: &str) -> Result<CompiledTemplate<'_>, Error> {
    let config =
        TemplateConfig { syntax_config: syntax(), default_auto_escape: Arc::new(|_| AutoEscape::None) };
    CompiledTemplate::new(NAME, text, &config)
}

fn compiled_in_bounds(text: &str) -> Result<CompiledTemplate<'_>, Error> {
    let mut program = compiled(text)?;
    program.instructions = in_bounds(&program.instructions);
    let blocks = std::mem::take(&mut program.blocks);
    program.blocks =
        blocks.into_iter().map(|(name, block)| (name, in_bounds(&block))).collect::<BTreeMap<_, _>>();
    Ok(program)
}

/// The same instructions with the filter before whatever stores a value, and behind a product.
fn in_bounds<'s>(from: &Instructions<'s>) -> Instructions<'s> {
    let all = || (0..).map_while(|i| from.get(i).cloned().map(|instruction| (i, instruction)));
    let bounded = || Instruction::ApplyFilter(FILTER, Some(1), !0);
    let group = |instruction| match instruction {
        Instruction::StoreLocal(_) => vec![bounded(), instruction],
        // The namespace lies on top of the value.
        Instruction::SetAttr(_) => vec![Instruction::Swap, bounded(), Instruction::Swap, instruction],
        Instruction::Mul => vec![instruction, bounded()],
        _ => vec![instruction],
    };
    // Where each instruction comes to lie, and the end.
    let mut places = vec![0];
    for (i, instruction) in all() {
        places.push(places[i as usize] + group(instruction).len() as u32);
    }
    let mut to = Instructions::new(from.name(), from.source());
    for (i, mut instruction) in all() {
        if let Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) = &mut instruction
        {
            *target = places[*target as usize];
        }
        let line = from.get_line(i).unwrap_or(0) as u16;
        for part in group(instruction) {
            to.add_with_line(part, line);
        }
    }
    to
}
