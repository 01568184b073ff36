# Chores of passt-rs; `make help` lists them.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
BENCH_ARGS ?=
FUZZ_SECONDS ?= 12

target := $(or $(CARGO_TARGET_DIR),target)
passt := $(target)/release/passt
repair := $(target)/release/passt-repair

# Most tests wait more than they compute.
export RUST_TEST_THREADS ?= $(shell expr 2 '*' $$(nproc))

# What the longer variants ask for: frames of nonsense, rounds of it over virtqueues, MiB through the scripted guest, MiB
# through each guest of the matrix, connections held and connections made, MiB through the QEMU guest; how long guests come
# and go (1800 s for a soak in earnest) and each attack is watched; MiB past the counting allocator; moves of a guest in a row.
# FAULTS=all, DELAY_LAB=1, MATRIX_MIB=256, CHURN_FLOWS=1000000, UDP_FLOWS=1000000, STOP_SECONDS=60 and MIGRATIONS=100 take
# more patience than two processors have.
long_sizes := HOSTILE_FRAMES=1000000 VHOST_ROUNDS=2000 TRANSFER_MIB=1024 MATRIX_MIB=32 HELD_FLOWS=19000 CHURN_FLOWS=100000 \
  GUEST_MIB=64 SOAK_SECONDS=120 ABUSE_MS=1000 UDP_FLOWS=200000 MEMORY_MIB=1024 MIGRATIONS=10
# The integration tests that read one of these in their own files, and so have a longer variant.
long_vars := HOSTILE_FRAMES|VHOST_ROUNDS|TRANSFER_MIB|MATRIX_MIB|CHURN_FLOWS|GUEST_MIB|SOAK_SECONDS|ABUSE_MS|UDP_FLOWS|MEMORY_MIB|STOP_SECONDS|MIGRATIONS
long_tests = $(shell grep -lE '$(long_vars)' tests/*.rs $$(dirname tests/*/main.rs) -rs | \
  sed -E 's,^tests/([^/.]+).*,\1,' | sort -u)

# What Miri looks at, and what it leaves out.
miri_layers := net config wire flow proto service
miri_slow := a_list_without_end_is_refused all_spares_port_zero_and_the_ephemeral_ports flow::turnover \
  a_hundred_thousand_connections_all_come_to_their_end

.PHONY: help build demo tools test lint unit test-all long loom fuzz supply miri bench install clean

help:
	@echo 'make demo              boot a real guest behind passt and show that it is online'
	@echo 'make test              format, lints, unit, property and integration tests, QEMU boots'
	@echo 'make test-all          the same, then the longer variants, the man page, loom, fuzz and supply'
	@echo 'make fuzz              coverage-guided search for crashes, FUZZ_SECONDS=12 for each target'
	@echo 'make loom              what threads share without locks, in every order of what they do'
	@echo 'make supply            licences, duplicates and advisories of dependencies, where the tools are at hand'
	@echo 'make miri              the pure layers under Miri, where a nightly toolchain has it'
	@echo 'make bench             the comparison bench; BENCH_ARGS="--peer PATH" puts another binary beside ours'
	@echo 'make build             release build'
	@echo 'make install           binaries, man pages and completions below PREFIX (/usr/local), staged in DESTDIR'

build:
	$(CARGO) build --release --bin passt --bin passt-repair

demo:
	contrib/setup.sh
	$(MAKE) --no-print-directory build
	PASST_BIN=$${PASST_BIN:-$(passt)} contrib/demo/run

test: tools lint unit

# Root gets what is missing installed; for anybody else the tests in question say that they skip.
tools:
	contrib/setup.sh || echo 'setup: tests that need what is missing will be skipped'

lint: tools
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) fmt --check --manifest-path tests/loom/Cargo.toml
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) check --tests --manifest-path tests/loom/Cargo.toml --target-dir $(target)/loom
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps

unit: tools lint
	$(CARGO) test --no-fail-fast
	$(CARGO) test --lib --manifest-path fuzz/Cargo.toml --target-dir $(target)

# Adds to `make test` what is too long for it, and repeats only tests that grow with a size.
test-all: test long loom fuzz supply

long: test
	mandoc -T lint -W warning man/passt.1 man/passt-repair.1
	$(long_sizes) $(CARGO) test --no-fail-fast $(addprefix --test ,$(long_tests))
	$(CARGO) test --test labs -- --ignored
	TEST_LINK=vhost-user $(CARGO) test --test hostile --test transfer --test fragments --test udp --test abuse -- --skip random_octets_on_the_link

# Orders of what two threads do, and what each of their loads may see: some seconds.
loom:
	$(CARGO) test --manifest-path tests/loom/Cargo.toml --target-dir $(target)/loom

# Eleven targets: some three minutes at the default. Each run starts from the committed seeds and what earlier runs found.
fuzz: tools
	CARGO=$(CARGO) fuzz/run $(FUZZ_SECONDS)

# Skips, with the reason, what this machine has no tool or no data for.
supply:
	CARGO=$(CARGO) contrib/supply-chain

# Tests of the pure layers under an interpreter that finds undefined behaviour, few cases of each property. Takes a nightly
# toolchain with Miri, and patience; tests that count far are left out.
miri:
	MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=2 $(CARGO) +nightly miri test --lib --target-dir $(target)/miri -- \
	  $(addsuffix ::,$(miri_layers)) $(addprefix --skip ,$(miri_slow))

bench:
	mkdir -p target/bench
	$(CARGO) bench --bench compare -- --json $(CURDIR)/target/bench/compare.json --svg $(CURDIR)/target/bench/compare.svg $(BENCH_ARGS)

install: build
	install -D -m 755 $(passt) $(DESTDIR)$(PREFIX)/bin/passt
	install -D -m 755 $(repair) $(DESTDIR)$(PREFIX)/bin/passt-repair
	install -D -m 644 man/passt.1 $(DESTDIR)$(PREFIX)/share/man/man1/passt.1
	install -D -m 644 man/passt-repair.1 $(DESTDIR)$(PREFIX)/share/man/man1/passt-repair.1
	install -D -m 644 contrib/completions/passt.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/passt
	install -D -m 644 contrib/completions/_passt $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_passt
	install -D -m 644 contrib/completions/passt.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/passt.fish

clean:
	$(CARGO) clean
