//! `chronicals data show`.

use std::io::IsTerminal;

use chronicals::{
    Error,
    data::{
        dataset::{Recognised, recognise},
        records::{Located, Records},
        template::Template,
        tokenize::{Overlong, TokenizeArgs, read},
        tokenizer::TextTokenizer,
    },
    job::told,
};
use clap::ValueEnum;

use super::Source;

/// Arguments of `show`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals data show train.yaml                                 the job's data, template and loss
  chronicals data show chat.jsonl --tokenizer model/ --assistant-only-loss
  chronicals data show qa.csv --tokenizer model/ --column prompt=question --column completion=answer
  chronicals data show chat.parquet --tokenizer model/ --skip 100 -n 1 --ids

On a terminal learned tokens are green and the others grey; \
elsewhere learned tokens are between ⟦ and ⟧.")]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// How many samples
    #[arg(short = 'n', long, default_value_t = 3)]
    samples: usize,
    /// Records to pass over first
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Print ids too; those learned are marked with *
    #[arg(long)]
    ids: bool,
    /// When to use colours
    #[arg(long, value_enum, default_value = "auto")]
    color: Color,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

/// Prints samples.
pub fn run(args: &Args) -> Result<(), Error> {
    let data = args.source.settings()?.data;
    let tokenizer = data.tokenizer()?;
    let tokenize = data.tokenize_args()?;
    let at = |e: &dyn std::fmt::Display| told(e, &data.path);
    let records = Records::open(&data.path, &data.read_args()).map_err(|e| at(&e))?;
    let recognised = recognise(&records, &tokenizer, &tokenize).map_err(|e| at(&e))?;
    super::heading(&data.path, &recognised);
    hint(&recognised, &tokenizer, tokenize.template);
    let paint = match args.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        }
    };
    let show = Show { tokenizer: &tokenizer, args: &tokenize, paint, ids: args.ids };
    let mut shown = 0;
    for (number, record) in records.enumerate().skip(args.skip).take(args.samples) {
        let record = record.map_err(|e| at(&e))?;
        show.sample(number + 1, record).map_err(|e| at(&e))?;
        shown += 1;
    }
    if shown == 0 {
        println!("\nno record is left behind the first {}", args.skip);
    }
    Ok(())
}

/// Says that there is a chat template, where nobody chose to do without it.
fn hint(recognised: &Recognised, tokenizer: &TextTokenizer, asked: Template) {
    let pairs = matches!(recognised.template, Template::Alpaca | Template::Plain);
    let chat = || tokenizer.chat_template().ok().flatten();
    if asked == Template::Auto
        && pairs
        && let Some(chat) = chat()
    {
        println!(
            "the chat template of {} is not used: with template: chat each record is a turn of the user and one of the assistant",
            chat.name()
        );
    }
}

struct Show<'a> {
    tokenizer: &'a TextTokenizer,
    args: &'a TokenizeArgs,
    paint: bool,
    ids: bool,
}

impl Show<'_> {
    fn sample(&self, number: usize, record: Located) -> Result<(), Box<dyn std::error::Error>> {
        let place = record.place.as_ref().map(|p| format!(" ({p})")).unwrap_or_default();
        let samples = read([Ok(record)], self.tokenizer, self.args.template, self.args.loss, &mut |_| {})?;
        if samples.empty > 0 {
            println!("\nsample {number}{place}: left out, its answer is empty");
            return Ok(());
        }
        let (ids, mask) = samples.store.sample(0);
        let most = self.args.max_length as usize;
        let (kept, note) = match self.args.overlong {
            _ if ids.len() <= most => (ids.len(), String::new()),
            Overlong::Truncate => (most, format!(", cut from {}", ids.len())),
            Overlong::Refuse => (ids.len(), format!(", left out: longer than max_length {most}")),
            Overlong::Wrapped => (ids.len(), format!(", cut into pieces of {most} with its neighbours")),
        };
        let (ids, mask) = (&ids[..kept], &mask[..kept]);
        let learned = mask.iter().skip(1).filter(|&&m| m != 0).count();
        println!("\nsample {number}{place}: {kept} tokens, {learned} learned{note}");
        println!("{}", self.text(ids, mask)?);
        if self.ids {
            let marked = |(id, mask): (&u32, &u8)| format!("{id}{}", if *mask != 0 { "*" } else { "" });
            println!("ids: {}", ids.iter().zip(mask).map(marked).collect::<Vec<_>>().join(" "));
        }
        Ok(())
    }

    /// The text, with runs of learned tokens marked.
    fn text(&self, ids: &[u32], mask: &[u8]) -> Result<String, Box<dyn std::error::Error>> {
        let mut text = String::new();
        let mut start = 0;
        for run in mask.chunk_by(|a, b| a == b) {
            let part = printable(&self.tokenizer.decode(&ids[start..start + run.len()])?);
            start += run.len();
            let (open, close) = match (run[0] != 0, self.paint) {
                (true, true) => ("\x1b[32m", "\x1b[0m"),
                (false, true) => ("\x1b[2m", "\x1b[0m"),
                (true, false) => ("⟦", "⟧"),
                (false, false) => ("", ""),
            };
            text.extend([open, &part, close]);
        }
        Ok(text)
    }
}

/// Characters that a terminal would obey are written out.
fn printable(text: &str) -> String {
    let escaped = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}
