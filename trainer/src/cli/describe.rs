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
    for (device, seams) in [("cpu", &d.seams), ("cuda", &d.cuda_seams)] {
        println!("{:<11} variants on {device}", "seam");
        for (seam, variants) in seams {
            println!("{seam:<11} {}", variants.join(", "));
        }
        println!();
    }
    println!("models      {}", d.models.join(", "));
    println!("methods     {}", d.methods.join(", "));
    println!("packing     {}", d.packing.join(", "));
}
