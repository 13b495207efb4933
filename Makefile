# exitgate: `make demo` shows the main job, `make test` proves it. Both want root: they make network namespaces.
GO      ?= go
BINARY  := .build/exitgate
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.commit=$(COMMIT)

.PHONY: build demo clients test attack chaos leaks race fuzz bench bench-peers lint clean

build: ## the one static binary
	@mkdir -p .build
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BINARY) ./cmd/exitgate

demo: build ## the main job for real: an agent fenced in its own namespaces, on this terminal
	@$(GO) run ./integration/demo -binary $(BINARY)

CLIENTS ?=
clients: build ## the programs people run as agents, downloaded and fenced; CLIENTS="curl git" for some of them
	@$(GO) run ./integration/clients -binary $(BINARY) -clients "$(CLIENTS)"

test: build lint ## everything, as root, in namespaces that the tests make
	EXITGATE_BINARY=$(CURDIR)/$(BINARY) $(GO) test -count=1 ./...

attack: build ## every way out, up and in that we know of, as a table: case, road, expected, seen, control
	EXITGATE_BINARY=$(CURDIR)/$(BINARY) $(GO) test -count=1 -v ./integration/attack

leaks: build ## upstreams that send the credential back in every form, on every channel: group, case, expected, seen, control
	EXITGATE_BINARY=$(CURDIR)/$(BINARY) $(GO) test -count=1 -v ./integration/leaks

chaos: build ## everything that a gate stands on, broken under load, each fault at full length
	EXITGATE_BINARY=$(CURDIR)/$(BINARY) $(GO) test -count=1 -v -timeout 20m ./integration/chaos -args -long

race: ## the same packages under the race detector
	$(GO) test -race -count=1 $$($(GO) list ./... | grep -v integration)

# A number of executions, for a length of time can end in "context deadline exceeded" without a finding (golang/go#75804, mended in Go 1.27).
FUZZTIME ?= 200000x
fuzz: ## every fuzz target for FUZZTIME
	@$(GO) list ./... | while read p; do $(GO) test -list '^Fuzz' $$p | grep ^Fuzz | while read f; do \
		echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s $$p || exit 1; done || exit 1; done

bench: build ## figures, each beside its baseline in the same run
	EXITGATE_BINARY=$(CURDIR)/$(BINARY) $(GO) run ./integration/bench

bench-peers: build ## the same beside nginx, haproxy, Apache, squid and others, as far as they are installed
	EXITGATE_BINARY=$(CURDIR)/$(BINARY) $(GO) run ./integration/bench -peers

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...

clean:
	rm -rf .build
