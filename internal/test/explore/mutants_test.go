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
	run        string // the test that has to find it, and its flags
}

var mutants = []mutant{
	{"lock: compatible", "mode.go", `return m.Valid() && s&^compatible[m] == 0`, `return m.Valid() && (s&^compatible[m] == 0 || m == S)`, "TestLock"},
	{"lock: in order", "lock.go", `return len(m.Waiters) == 0 && len(m.Holders)`, `return len(m.Holders)`, "TestLock"},
	{"H1 new tickets", "mode.go", "e.Token, m.staleTickets = 0, true", "e.Token = 0", "TestLock"},
	{"H1 in order", "entry.go", "\t\t\t\tn++\n", "", "TestLock"},
	{"lock: conversions first", "lock.go", "waits := m.promoteConversions()", "waits := false", "TestLock"},
	{"lock: no deadlock", "mode.go", "blocker >= 0", "blocker >= 99", "TestLock"},
	{"release lets others in", "apply.go", "\treturn m.settled()\n}\n\n// settled", "\tif op.Verb != OpRelease {\n\t\treturn m.settled()\n\t}\n\treturn Result{Verdict: Applied}\n}\n\n// settled", "TestSemaphore"},
	{"eviction lets others in", "apply.go", "\treturn m.settled()\n}\n\n// settled", "\tif op.Verb != OpEvict {\n\t\treturn m.settled()\n\t}\n\treturn Result{Verdict: Applied}\n}\n\n// settled", "TestSemaphore"},
	{"P11 on arrival", "semaphore.go", `e.Permits <= free && len`, `e.Permits <= s.size && len`, "TestSemaphore"},
	{"P11 from the queue", "semaphore.go", `(e.Permits > free || len`, `(e.Permits > m.semaphore().size || len`, "TestSemaphore"},
	{"P12 on arrival", "semaphore.go", `granted := firstInLine(m.Waiters) < 0 && e`, `granted := e`, "TestSemaphore"},
	{"P12 from the queue", "semaphore.go", `stop = stop || !e.Refused`, `stop = !e.Refused`, "TestSemaphore"},
	{"P13 resize", "semaphore.go", `case op.Base == s.sized && `, `case op.Base <= s.sized && `, "TestSemaphore"},
	{"P16 resize", "semaphore.go", "needN | needLimit | needLife, 0", "needN | needLimit, 0", "TestSemaphore"},
	{"P16 delete", "semaphore.go", "OpDelete:  {needLife, 0", "OpDelete:  {noMode, 0", "TestSemaphore"},
	{"P1 signal", "cond.go", "\tm.setCondition(name, slices.Delete(waiters, 0, n))\n\treturn true", "\treturn true", "TestCondition"},
	{"P1 cancelled wait", "cond.go", "m.setCondition(name, slices.Delete(waiters, i, i+1))", "_ = waiters", "TestCondition"},
	{"P2 one write", "cond.go", "\tif h == nil {\n\t\tm.promote()\n\t\treturn Result{Verdict: NotHolder}\n\t}\n\thold", "\tif h == nil {\n\t\tm.setCondition(op.Queue, append(slices.Clip(m.condition(op.Queue)), Entry{ID: op.ID, Mode: X, TTL: 1e9}))\n\t\tm.promote()\n\t\treturn Result{Verdict: Applied}\n\t}\n\thold", "TestP2_.* -explore.split"},
	{"P3 by sequence", "cond.go", "case h.LastSignal >= sequenceOf(op.ID):", "case false:", "TestCondition"},
	{"P3 by token", "cond.go", "m.Holders[i].Mode == X && m.Holders[i].Token == op.Token", "m.Holders[i].Mode == X", "TestCondition"},
	{"P9 passed on", "cond.go", `if e.Signalled != "" && !e.SignalAll {`, "if false {", "TestCondition"},
	{"P9 once held, by token", "cond.go", `if m.op.Verb == OpRelease && m.op.Token != 0 {`, "if false {", "TestCondition"},
	{"P9 not of a broadcast", "cond.go", `e.Signalled != "" && !e.SignalAll`, `e.Signalled != ""`, "TestCondition"},
	{"P10 all who wait", "cond.go", "n = len(m.condition(op.Queue))", "n = 1", "TestCondition"},
	{"P10 not those who come later", "cond.go", "m.Holders[i].Mode == X && m.Holders[i].Token == op.Token", "m.Holders[i].Mode == X && (op.All || m.Holders[i].Token == op.Token)", "TestCondition"},
	{"P26 wait", "cond.go", "m.Holders[i].rename(op.ID)\n\t\tm.size = -1", "m.size = -1", "TestCondition"},
	{"P26 wait, by token", "cond.go", "i >= 0 && m.Holders[i].Token == op.Token && !m.Has", "i >= 0 && !m.Has", "TestCondition"},
	{"P13 proclaim", "election.go", "if h.Proclaim >= seq {", "if false {", "TestElection"},
	{"P19 proclaim", "cond.go", "if i := indexOf(m.Holders, op.Holder); i >= 0 && m.Holders[i].Mode == X && m.Holders[i].Token == op.Token {", "if i := 0; len(m.Holders) > 0 {", "TestElection"},
	{"P4 generation", "barrier.go", "case gen != b.gen, forming == b.parties:", "case forming == b.parties:", "TestBarrier"},
	{"P4 retry", "barrier.go", "if m.Has(op.ID) || b.known(gen).has(op.ID) {", "if m.Has(op.ID) {", "TestBarrier"},
	{"P5 one write", "barrier.go", "b.acting == nil && len(m.Waiters) == b.parties {", "b.acting == nil && len(m.Waiters) > b.parties {", "TestBarrier"},
	{"P6 how it ended", "barrier.go", `case g.why != "":`, "case false:", "TestBarrier"},
	{"P6 by generation", "barrier.go", "case gen < b.gen && g == nil:\n\t\treturn State{Standing: Refused, Why: Forgotten}\n\tcase !g.has(op.ID):\n\t\treturn State{}\n", "case gen < b.gen:\n\t\treturn State{Standing: Granted}\n\tcase g == nil:\n\t\treturn State{}\n", "TestBarrier"},
	{"P7 cancel after the trip", "barrier.go", "op.generation() == b.gen && op.Limit == b.parties", "op.Limit == b.parties", "TestBarrier"},
	{"P7 cancel breaks", "barrier.go", "m.breakForming(WhyCancelled, op.ID)", "m.removeAll(selection{id: op.ID})", "TestBarrier"},
	{"P8 breaks", "barrier.go", "case b.acting == nil && len(m.removed) > 0:", "case false:", "TestBarrier"},
	{"P8 once", "barrier.go", "\tb := m.barrier()\n\tg := generation{gen: b.gen, why: why, who: who}\n", "\tb := m.barrier()\n\tb.gen += uint64(max(len(m.removed)-1, 0))\n\tg := generation{gen: b.gen, why: why, who: who}\n", "TestBarrier"},
	{"P8 not while acting", "barrier.go", "case b.acting == nil && len(m.removed) > 0:", "case len(m.removed) > 0:", "TestBarrier"},
	{"P8 one action at a time", "barrier.go", "for b.acting == nil && len(m.Waiters) == b.parties {", "for m.forming() == b.parties {", "TestBarrier"},
	{"P8 the one who acts", "barrier.go", "case b.acting != nil && len(m.Holders) == 0:", "case false:", "TestBarrier"},
	{"P13 reset", "barrier.go", "case gen == b.gen && m.forming() > 0:", "case m.forming() > 0:", "TestBarrier"},
	{"P15 sweep", "apply.go", "m.rev != op.Base || ", "", "TestBarrier"},
	{"P16 barrier", "apply.go", "case op.Life != m.Life && op.rule()", "case op.Kind != KindBarrier && op.Life != m.Life && op.rule()", "TestBarrier"},
	{"P26 arrive", "barrier.go", "op.generation() == b.gen && op.Limit == b.parties", "op.generation() == b.gen && op.Limit == b.parties && m.Has(op.ID)", "TestBarrier"},
	{"gate: generation", "gate.go", "case op.generation() != g.gen:", "case false:", "TestGate"},
	{"gate: eviction counts as left", "gate.go", "\tif len(m.removed) > 0 {\n\t\tg.gen++\n\t}\n", "", "TestGate"},
	{"gate: opens when all are in", "gate.go", "if len(m.Holders) < g.parties {", "if len(m.Holders) < g.parties-1 {", "TestGate"},
	{"P16 gate", "apply.go", "case op.Life != m.Life && op.rule()", "case op.Kind != KindGate && op.Life != m.Life && op.rule()", "TestGate"},
	{"P26 enter", "gate.go", "\t\tg.gen++\n\t\tm.forceWrite = true", "\t\tm.forceWrite = true", "TestGate"},
	{"P26 enter of nobody", "gate.go", "m.forceWrite = true", "m.forceWrite = false", "TestGate"},
	{"P14 by sequence", "latch.go", "case l.count == 0, l.marked(op):\n\t\treturn Result{Verdict: Applied}\n\tcase op.Base", "case l.count == 0:\n\t\treturn Result{Verdict: Applied}\n\tcase op.Base", "TestLatch"},
	{"P14 each by its own", "latch.go", "s.from <= seq && seq <= s.to", "seq <= s.to", "TestLatch"},
	{"P14 fenced", "latch.go", "l.fenced, m.size = m.rev+1, -1", "m.size = -1", "TestLatch"},
	{"P16 latch", "apply.go", "case op.Life != m.Life && op.rule()", "case op.Kind != KindLatch && op.Life != m.Life && op.rule()", "TestLatch"},
	{"P26 count", "latch.go", "case op.Base >= l.shut:", "case false:", "TestLatch"},
	{"P26 count without a latch", "latch.go", "m.forceWrite, l.shut = true, m.rev+1", "m.forceWrite = false", "TestLatch"},
	{"P16 once", "apply.go", "case op.Life != m.Life && op.rule()", "case op.Kind != KindOnce && op.Life != m.Life && op.rule()", "TestOnce"},
	{"P19 finish", "once.go", "case !holds:", "case false:", "TestOnce"},
	{"once: a retry of finish", "once.go", "case op.Fail, o.by == op.Holder:", "case op.Fail, o.by == op.ID:", "TestOnce"},
	{"once: a result ends it", "once.go", "case m.once().by != \"\":", "case false:", "TestOnce"},
	{"P26 finish", "verb.go", "undo.Fail, undo.Value = true, Value{}", "undo.Verb = OpRelease", "TestOnce"},
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
			run, flags, _ := strings.Cut(m.run, " ")
			args := append([]string{"test", "-count=1", "-failfast", "-overlay", filepath.Join(dir, "overlay.json"), "-run", "^" + run + "$", "."}, strings.Fields(flags)...)
			out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
			found := steps.FindSubmatch(out)
			if err == nil || found == nil {
				t.Fatalf("nothing was found: %v\n%s", err, out)
			}
			first, _, _ := strings.Cut(string(out[strings.Index(string(out), "_test.go:"):]), "\n")
			t.Logf("| %s | %s | %s |", m.rule, found[1], regexp.MustCompile(`^\S+\s+|record: malformed at byte \d+: `).ReplaceAllString(first, "")) // a line of docs/testing.md
		})
	}
}
