//! The `standpipe` command: hands over to the library.

fn main() -> std::process::ExitCode {
    standpipe::cli::run(std::env::args_os())
}
