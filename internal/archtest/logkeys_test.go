package archtest

import (
	"os"
	"path"
	"strings"
	"testing"
)

// TestLogKeys holds every log call of the libraries and the command against the
// table in docs/observability.md.
func TestLogKeys(t *testing.T) {
	const root = "../.."
	doc, err := os.ReadFile(path.Join(root, "docs/observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	keys := documentedKeys(string(doc))
	tree, err := readTree(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, s := range tree {
		if l, _ := layerOf(s.pkg); s.isTest() || l.testOnly {
			continue
		}
		text, err := os.ReadFile(path.Join(root, s.path))
		if err != nil {
			t.Fatal(err)
		}
		violations, n, err := logViolations(s.path, string(text), keys)
		if err != nil {
			t.Fatal(err)
		}
		found[s.pkg] += n
		for _, what := range violations {
			t.Error(what)
		}
	}
	// Finding none would mean that loggers go by another name now.
	for _, pkg := range []string{"fabric", "internal/lease", "embedded", "cmd/lockfabric"} {
		if found[pkg] == 0 {
			t.Errorf("no log call was found in %s", pkg)
		}
	}
}

func TestLogRulesCanFail(t *testing.T) {
	keys := documentedKeys("text `no` \n\n| key | meaning |\n|---|---|\n| `key` | of `x` |\n| `error` | |\n\n| `later` | |\n")
	if len(keys) != 2 || !keys["key"] || !keys["error"] {
		t.Fatalf("keys %v", keys)
	}
	for _, c := range []struct{ call, want string }{
		{`log.Warn("lost", "key", k, "error", err)`, ""},
		{`s.m.cfg.logger.Debug("lost", slog.Any("error", err), "key", k)`, ""},
		{`x.Logger.With("key", k).Info("y", "error", err)`, ""},
		{`err.Error()`, ""},
		{`hub.With("whatever")`, ""},
		{`log.Warn("lost", "lock", k)`, `key "lock" is not in the table`},
		{`s.log.Error("lost", "key", k, "err", err)`, `key "err" is not in the table`},
		{`log.LogAttrs(ctx, slog.LevelWarn, "lost", slog.String("name", k))`, `key "name" is not in the table`},
		{`l.cfg.Logger.With("lock", k)`, `key "lock" is not in the table`},
		{`log.InfoContext(ctx, "lost", "lock", k)`, `key "lock" is not in the table`},
		{`log.Warn("lost "+k)`, "the message is no constant text"},
		{`log.Warn("lost", name, k)`, "the key of an attribute is no constant text"},
	} {
		got, _, err := logViolations("a.go", "package p\n\nfunc f() {\n"+c.call+"\n}\n", keys)
		switch {
		case err != nil:
			t.Error(err)
		case c.want == "" && len(got) > 0:
			t.Errorf("%s is refused: %q", c.call, got)
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
			t.Errorf("%s: got %q, want %q", c.call, got, c.want)
		}
	}
}
