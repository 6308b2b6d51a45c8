package archtest

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestTree(t *testing.T) {
	tree, err := readTree(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	// An empty walk would find nothing wrong.
	for _, pkg := range []string{"kv", "internal/record", "embedded"} {
		if !slices.ContainsFunc(tree, func(s source) bool { return s.pkg == pkg }) {
			t.Errorf("no file of %s was read", pkg)
		}
	}
	for _, what := range violations(tree) {
		t.Error(what)
	}
}

func TestTableHasNoCycle(t *testing.T) {
	if at := cycle(layers); at != "" {
		t.Errorf("the table lets %s import itself over other packages", at)
	}
	all := maps.Clone(layers)
	maps.Copy(all, programs)
	for pkg, l := range all {
		for _, imported := range l.imports {
			if to, ok := layers[imported]; !ok || to.testOnly {
				t.Errorf("the table lets %s import %s, which has no line there or is for tests", pkg, imported)
			}
		}
	}
	bent := map[string]layer{"a": {imports: []string{"b"}}, "b": {imports: []string{"c"}}, "c": {imports: []string{"b"}}}
	if cycle(bent) == "" {
		t.Error("a table with a cycle passed")
	}
}

// TestRulesCanFail breaks a clean tree in one place at a time: a rule that
// can't fail guards nothing.
func TestRulesCanFail(t *testing.T) {
	const (
		doc    = "// Package p is here.\npackage p\n"
		inits  = "package p\n\nfunc init() {}\n"
		lf     = module + "/"
		server = natsServer + "/v2/server"
	)
	importing := func(paths ...string) string {
		return "package p\n\nimport (\n\t_ \"" + strings.Join(paths, "\"\n\t_ \"") + "\"\n)\n"
	}
	clean := map[string]string{
		"kv/doc.go":                              doc,
		"kv/bucket_test.go":                      importing("testing", lf+"kv", lf+"embedded", lf+"internal/test/faultproxy", "go.uber.org/goleak"),
		"internal/lease/doc.go":                  doc,
		"internal/lease/lease.go":                importing("context", lf+"kv", lf+"internal/clock", "github.com/nats-io/nats.go"),
		"fabric/doc.go":                          doc,
		"fabric/lock.go":                         importing(lf + "internal/engine"),
		"embedded/doc.go":                        doc,
		"embedded/server.go":                     importing(server),
		"internal/test/faultproxy/doc.go":        doc,
		"internal/test/faultproxy/proxy.go":      importing("testing"),
		"internal/test/faultproxy/proxy_test.go": importing(server, lf+"embedded"),
		"cmd/lockfabric/main.go":                 "// Command p is here.\npackage main\n\nimport _ \"" + lf + "embedded\"\n\nfunc init() {}\n",
		"examples/lock/main.go":                  "// Command p is here.\npackage main\n\nimport _ \"" + lf + "fabric\"\n",
		"bench/go.mod":                           "module bench\n", // nested: another module's affair
		"bench/main.go":                          importing(lf + "internal/lease"),
		"kv/testdata/broken.go":                  "not Go",
	}
	cases := []struct {
		name, path, text, want string
	}{
		{"clean", "kv/bucket.go", "package p\n", ""},
		{"upwards", "kv/bucket.go", importing(lf + "fabric"), "kv/bucket.go imports " + lf + "fabric: imports go downwards only"},
		{"upwards in a test", "kv/a_test.go", importing(lf + "fabric"), "imports go downwards only"},
		{"sideways", "internal/record/doc.go", doc + "\nimport _ \"" + lf + "kv\"\n", "imports go downwards only"},
		{"past a layer", "primitives/doc.go", doc + "\nimport _ \"" + lf + "kv\"\n", "imports go downwards only"},
		{"the module itself", "kv/bucket.go", importing(module), "not in the table"},
		{"a program", "kv/bucket.go", importing(lf + "cmd/lockfabric"), "imports go downwards only"},
		{"an example inside", "examples/lock/b.go", importing(lf + "internal/lease"), "imports go downwards only"},
		{"server", "kv/bucket.go", importing(server), "stays behind embedded"},
		{"server in a test", "kv/a_test.go", importing(server), "stays behind embedded"},
		{"server in a program", "cmd/lockfabric/b.go", importing(server), "stays behind embedded"},
		{"server in test support", "internal/test/faultproxy/b.go", importing(server), "stays behind embedded"},
		{"Prometheus in fabric", "fabric/b.go", importing("github.com/prometheus/client_golang/prometheus"), "stays behind fabric/fabricprom"},
		{"Prometheus in a test of fabric", "fabric/b_test.go", importing("github.com/prometheus/client_golang/prometheus"), "stays behind fabric/fabricprom"},
		{"OpenTelemetry in fabric", "fabric/b.go", importing("go.opentelemetry.io/otel/trace"), "stays in fabric/fabricotel"},
		{"the collector in fabric", "fabric/b.go", importing(lf + "fabric/fabricprom"), "imports go downwards only"},
		{"embedded in a library", "fabric/b.go", importing(lf + "embedded"), "only programs and tests"},
		{"test support in a library", "fabric/b.go", importing(lf + "internal/test/faultproxy"), "support for tests"},
		{"testing in a library", "fabric/b.go", importing("testing"), "for tests"},
		{"testing/synctest in a library", "fabric/b.go", importing("testing/synctest"), "for tests"},
		{"rapid in a library", "fabric/b.go", importing("pgregory.net/rapid"), "for tests"},
		{"unknown package", "internal/newcomer/doc.go", doc, "internal/newcomer is a new package: give it a line in the table of internal/archtest/layers_test.go"},
		{"package at the root", "doc.go", doc, ". is a new package"},
		{"no doc.go", "internal/clock/clock.go", doc, "internal/clock has no package comment in doc.go"},
		{"empty doc.go", "internal/clock/doc.go", "package p\n", "internal/clock has no package comment in doc.go"},
		{"silent program", "examples/silent/main.go", "package main\n", "examples/silent has no package comment in doc.go or main.go"},
		{"init", "kv/bucket.go", inits, "kv/bucket.go has a func init"},
		{"init in a test", "kv/a_test.go", inits, "kv/a_test.go has a func init"},
		{"init method", "kv/bucket.go", "package p\n\ntype t int\n\nfunc (t) init() {}\n", ""},
		{"long", "kv/bucket.go", "package p\n" + strings.Repeat("\n", maxLines), "kv/bucket.go has 451 lines, more than 450"},
		{"long enough", "kv/bucket.go", "package p\n" + strings.Repeat("\n", maxLines-1), ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			files := fstest.MapFS{c.path: {Data: []byte(c.text)}}
			for p, text := range clean {
				if _, taken := files[p]; !taken {
					files[p] = &fstest.MapFile{Data: []byte(text)}
				}
			}
			tree, err := readTree(files)
			if err != nil {
				t.Fatal(err)
			}
			got := violations(tree)
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("a clean tree is refused: %q", got)
			case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
				t.Errorf("got %q, want one violation with %q", got, c.want)
			}
		})
	}
}

func TestTreeRefusesWhatIsNotGo(t *testing.T) {
	if _, err := readTree(fstest.MapFS{"kv/bucket.go": {Data: []byte("not Go")}}); err == nil {
		t.Error("a file that doesn't parse passed")
	}
}
