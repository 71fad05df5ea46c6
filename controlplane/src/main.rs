//! `weir`: the control plane and its command line.
//!
//! So far it says what it is and no more: the packet plane, `weir-dataplane`, comes first and is driven over its own socket. A
//! module appears here when it does something.

use clap::Parser;

/// Weir's control plane. It has no commands yet.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    after_help = "Only the packet plane exists so far: see `weir-dataplane --help`.\n\
                  Discovery, certificates, names and routing between gateways are still to be written.",
    arg_required_else_help = true
)]
struct Arguments {}

fn main() {
    Arguments::parse();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn help_says_what_there_is_and_what_there_is_not() {
        let mut command = Arguments::command();
        command.clone().debug_assert();
        let help = command.render_help().to_string();
        assert!(help.contains("Only the packet plane exists so far") && help.contains("weir-dataplane"), "{help}");
        assert_eq!(command.render_version(), format!("weir {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_command_that_does_not_exist_is_refused() {
        for arguments in [&["weir", "status"][..], &["weir", "--daemon"]] {
            let error = Arguments::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownArgument, "{arguments:?}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn saying_nothing_shows_the_help_and_fails() {
        let error = Arguments::try_parse_from(["weir"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        assert_eq!(error.exit_code(), 2);
    }
}
