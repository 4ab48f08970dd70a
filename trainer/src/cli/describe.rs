//! `chronicals describe`.

use chronicals::describe::description;

/// Arguments of `describe`.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Prints what this build can do.
pub fn run(args: &Args) {
    let d = description();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&d).expect("a description is plain data"));
        return;
    }
    println!("seam        variants");
    for (seam, variants) in &d.seams {
        println!("{seam:<11} {}", variants.join(", "));
    }
    println!("\nmodels      {}", d.models.join(", "));
    println!("methods     {}", d.methods.join(", "));
    println!("packing     {}", d.packing.join(", "));
}
