//! `cargo bench -p weir-bench`: the same set as `weir-bench micro`.

use std::process::ExitCode;

use weir_bench::micro;

fn main() -> ExitCode {
    // `cargo test --all-targets` starts this too, without the flag: tests are not timed.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match micro::run(&micro::Piece::ALL, |next| eprintln!("… {next}")) {
        Ok(figures) => {
            print!("{}", micro::render(&figures));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("weir-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
