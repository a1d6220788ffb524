//! The binary `sluicegate`: the command line in front of the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::cli::main()
}
