//! The program. All of it is in the library, so that tests and benches use the same code.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    wxgate::cli::main()
}
