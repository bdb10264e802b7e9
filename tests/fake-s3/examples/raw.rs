//! Measures the raw client against any server: `raw ADDR PATH SIZE_BYTES PART_BYTES CONNECTIONS ROUNDS [small REQUESTS]`.
//! Prints wall-clock time; the CPU of either side is in `/proc/PID/stat`.
#![expect(clippy::print_stdout, reason = "its purpose")]

use std::time::Instant;

use fake_s3::raw::{RawReader, small_requests};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| args[index].parse::<u64>();
    let (addr, path) = (args[0].parse()?, &args[1]);
    let (size, part, connections, rounds) =
        (number(2)?, number(3)?, number(4)? as usize, number(5)?);
    if args.get(6).is_some_and(|word| word == "small") {
        let requests = number(7)?;
        let start = Instant::now();
        small_requests(addr, path, size, part, connections, requests)?;
        println!(
            "{:.0} requests/s",
            requests as f64 / start.elapsed().as_secs_f64()
        );
        return Ok(());
    }
    let mut reader = RawReader::connect(addr, path, size, part, connections)?;
    for _ in 0..rounds {
        let (start, mut touched) = (Instant::now(), 0u64);
        let bytes = reader.read(|body| {
            touched += body
                .iter()
                .step_by(64)
                .map(|byte| u64::from(*byte))
                .sum::<u64>()
        })?;
        println!(
            "{:.3} GB/s (sum {touched})",
            bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}
