package explore

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var mutantsFlag = flag.Bool("explore.mutants", false, "take each rule out of internal/record, and see that it is missed")

// mutant is internal/record without a rule.
type mutant struct {
	rule, file string
	old, new   string // old stands in the file once
	run        string // the test that has to find it
}

var mutants = []mutant{
	{"lock: compatible", "mode.go", `return m.Valid() && s&^compatible[m] == 0`, `return m.Valid() && (s&^compatible[m] == 0 || m == S)`, "TestLock"},
	{"lock: in order", "lock.go", `return len(m.Waiters) == 0 && len(m.Holders)`, `return len(m.Holders)`, "TestLock"},
	{"lock: a new token", "lock.go", `e.Token = 0 // the fencing token`, `_ = 0 // the fencing token`, "TestLock"},
	{"lock: conversions first", "lock.go", "if m.promoteConversions() {\n\t\treturn", "if false {\n\t\treturn", "TestLock"},
	{"lock: no deadlock", "convert.go", "blocker >= 0", "blocker >= 99", "TestLock"},
	{"release lets others in", "apply.go", "\tk.settle(m)\n", "\tif op.Verb != OpRelease {\n\t\tk.settle(m)\n\t}\n", "TestSemaphore"},
	{"eviction lets others in", "apply.go", "\tk.settle(m)\n", "\tif op.Verb != OpEvict {\n\t\tk.settle(m)\n\t}\n", "TestSemaphore"},
	{"P11 on arrival", "semaphore.go", `e.Permits <= free && len`, `e.Permits <= s.size && len`, "TestSemaphore"},
	{"P11 from the queue", "semaphore.go", `(e.Permits > free || len`, `(e.Permits > m.semaphore().size || len`, "TestSemaphore"},
	{"P12 on arrival", "semaphore.go", `granted := len(m.Waiters) == 0 && e`, `granted := e`, "TestSemaphore"},
	{"P12 from the queue", "semaphore.go", `stop = stop || !e.Refused`, `stop = !e.Refused`, "TestSemaphore"},
	{"P13 resize", "semaphore.go", `case op.Base == s.sized:`, `case op.Base <= s.sized:`, "TestSemaphore"},
	{"P16 resize", "semaphore.go", `return op.Verb == OpResize || op.Verb == OpDelete`, `return op.Verb == OpDelete`, "TestSemaphore"},
	{"P16 delete", "semaphore.go", `return op.Verb == OpResize || op.Verb == OpDelete`, `return op.Verb == OpResize`, "TestSemaphore"},
	{"P16 within a write", "apply.go", `op.Kind != m.Kind || m.Body != nil`, `op.Kind != m.Kind`, "TestSemaphore"},
}

const recordDir = "../../record"

// source returns a file without the rule.
func (m *mutant) source(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(recordDir, m.file))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		t.Fatalf("%q stands in %s %d times, not once: the rule is written in another way now", m.old, m.file, n)
	}
	return strings.Replace(string(text), m.old, m.new, 1)
}

// TestMutants takes each rule out, and the exploration has to find a violation. Without its flag it
// only looks whether there is still what would be taken out.
func TestMutants(t *testing.T) {
	steps := regexp.MustCompile(`after (\d+) steps`)
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.rule, " ", "_"), func(t *testing.T) {
			text := m.source(t)
			if !*mutantsFlag {
				return
			}
			dir := t.TempDir()
			changed := filepath.Join(dir, "changed.go")
			original, err := filepath.Abs(filepath.Join(recordDir, m.file))
			if err != nil {
				t.Fatal(err)
			}
			overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
			if err != nil {
				t.Fatal(err)
			}
			for name, data := range map[string][]byte{changed: []byte(text), filepath.Join(dir, "overlay.json"): overlay} {
				if err := os.WriteFile(name, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			out, err := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-failfast", "-overlay", filepath.Join(dir, "overlay.json"), "-run", "^"+m.run+"$", ".").CombinedOutput()
			found := steps.FindSubmatch(out)
			if err == nil || found == nil {
				t.Fatalf("nothing was found: %v\n%s", err, out)
			}
			first, _, _ := strings.Cut(string(out[strings.Index(string(out), "_test.go:"):]), "\n")
			t.Logf("| %s | %s | %s |", m.rule, found[1], regexp.MustCompile(`^\S+ `).ReplaceAllString(first, "")) // a line of docs/testing.md
		})
	}
}
