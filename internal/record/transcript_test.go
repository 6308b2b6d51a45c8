package record

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write what the transcripts in testdata show now")

// TestTranscripts replays testdata/*.txt. In a transcript, lines that begin with "> " are commands;
// the indented lines below are the expected output; everything else is prose. Each command is one
// write, its operations separated by ";":
//
//	acquire ID MODE [owner=O] [lease=L] [ttl=D] [hold=D] [patience=D] [meta.KEY=VALUE]   (also: try)
//	convert HOLDER ID MODE [lease=L]   (also: unconvert)
//	wait HOLDER ID CONDITION token=T   (also: signal, with all=yes for everybody)
//	cancel-wait HOLDER ID token=T
//	proclaim HOLDER ID token=T value=V
//	release ID [lease=L] [hold=D] [token=T]
//	evict LEASE...
//	KIND VERB [ID] [FIELD=VALUE]...   an operation of another kind than lock; FIELD is n, limit, base, life, holder, token, value or fail
//	revoke ID|all [upto=T]   (also: remove)
//	lost COMMAND      apply, but lose the write: the conflict or the failure of a CAS
//	limits holders=N waiters=N bytes=N
//	json              the record as it is stored
//
// A ticket T is REVISION, or REVISION.NUMBER.
//
// With -update the files are written anew; read the difference before you keep it.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			switch {
			case got == string(want):
			case *update:
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("the transcript now reads\n%s", got)
			}
		})
	}
}

// replay returns the transcript with the output of its commands.
func replay(t *testing.T, text string) string {
	var out strings.Builder
	s := &script{t: t, out: &out}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "  ") {
			continue
		}
		out.WriteString(line)
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "> "); ok {
			s.run(command)
		}
	}
	return out.String()
}

type script struct {
	t      *testing.T
	out    *strings.Builder
	lim    Limits
	stored []byte
	rev    uint64
}

func (s *script) run(command string) {
	switch {
	case command == "json":
		fmt.Fprintf(s.out, "  %s\n", s.stored)
	case strings.HasPrefix(command, "limits "):
		for _, f := range strings.Fields(command)[1:] {
			name, value, _ := strings.Cut(f, "=")
			n, err := strconv.Atoi(value)
			field := map[string]*int{"holders": &s.lim.MaxHolders, "waiters": &s.lim.MaxWaiters, "bytes": &s.lim.MaxBytes}[name]
			if err != nil || field == nil {
				s.t.Fatalf("bad limit %s", f)
			}
			*field = n
		}
	default:
		rest, lost := strings.CutPrefix(command, "lost ")
		var ops []Op
		for part := range strings.SplitSeq(rest, ";") {
			ops = append(ops, s.parse(strings.Fields(part)))
		}
		s.apply(ops, lost)
	}
}

func (s *script) parse(words []string) (op Op) {
	if kinds[Kind(words[0])] != nil {
		return s.parseOf(Kind(words[0]), words[1:])
	}
	op.Kind, op.Verb = KindLock, VerbNamed(words[0])
	if op.Verb == 0 || len(words) < 2 {
		s.t.Fatalf("bad command %q", words)
	}
	if op.common() {
		op.Kind = "" // whatever is there
	}
	options := words[2:]
	switch op.Verb {
	case OpEvict:
		op.Leases = words[1:]
		return op
	case OpAcquire, OpTry:
		mode, err := ParseMode(words[2])
		if err != nil {
			s.t.Fatalf("%q: %v", words, err)
		}
		op.Mode, op.TTL, options = mode, 30*time.Second, words[3:]
	}
	if op.ID = words[1]; op.ID == "all" {
		op.ID = ""
	}
	if op.Verb == OpConvert || op.Verb == OpUnconvert {
		mode, err := ParseMode(words[3])
		if err != nil {
			s.t.Fatalf("%q: %v", words, err)
		}
		op.Holder, op.ID, op.Mode, options = words[1], words[2], mode, words[4:]
	}
	switch op.Verb {
	case OpWait, OpSignal, OpCancelWait, OpProclaim:
		if op.Holder, op.ID, options = words[1], words[2], words[3:]; op.Verb == OpWait || op.Verb == OpSignal {
			op.Queue, options = words[3], words[4:]
		}
	}
	op.Lease = LeaseOf(op.ID)
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		var err error
		switch name {
		case "token":
			op.Token, err = parseTicket(value)
		case "value":
			op.Value = Value{Set: true, Data: value}
		case "all":
			op.All = true
		case "owner":
			op.Owner = value
		case "lease":
			op.Lease = value
		case "ttl":
			op.TTL, err = time.ParseDuration(value)
		case "hold":
			op.Hold, err = time.ParseDuration(value)
		case "patience":
			op.Patience, err = time.ParseDuration(value)
		case "upto":
			op.UpTo, err = parseTicket(value)
		default:
			key, ok := strings.CutPrefix(name, "meta.")
			if !ok {
				s.t.Fatalf("bad option %s", o)
			}
			op.Meta = map[string]string{key: value}
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return op
}

func (s *script) apply(ops []Op, lost bool) {
	var base *Record
	if s.stored != nil {
		var err error
		if base, err = Decode(s.stored); err != nil {
			s.t.Fatal(err)
		}
	}
	next, results, changed := Apply(base, s.rev, ops, s.lim)
	for i, r := range results {
		fmt.Fprintf(s.out, "  %s", r.Verdict)
		if r.Blocker.ID != "" {
			fmt.Fprintf(s.out, " by %s (owner %s)", r.Blocker.ID, r.Blocker.OwnerID())
		}
		if r.Wait > 0 {
			fmt.Fprintf(s.out, ", behind %d, for %v", r.Position, r.Wait)
		}
		if len(ops) > 1 {
			fmt.Fprintf(s.out, ": %s %s%s", ops[i].Verb, ops[i].ID, strings.Join(ops[i].Leases, " "))
		}
		s.out.WriteByte('\n')
	}
	switch {
	case lost:
		s.out.WriteString("  not written\n")
		return
	case !changed:
		s.out.WriteString("  unchanged\n")
		return
	}
	s.rev++
	s.stored = next.Append(nil)
	next.Resolve(s.rev)
	fmt.Fprintf(s.out, "  revision %d", s.rev)
	if next.Idle() {
		s.stored = nil
		s.out.WriteString(": deleted")
	}
	s.out.WriteByte('\n')
	s.body(next)
	for _, e := range next.Holders {
		fmt.Fprintf(s.out, "    held     %-4s %-3s token %s", e.ID, take(e), ticketText(e.Token))
		if e.Revoked {
			s.out.WriteString(", revoked")
		}
		if e.Convert.ID != "" {
			fmt.Fprintf(s.out, ", converting to %s (%s since %d)", e.Convert.Mode, e.Convert.ID, e.Convert.Queued)
		}
		if e.Converted != "" {
			fmt.Fprintf(s.out, ", converted by %s", e.Converted)
		}
		s.signalled(e)
	}
	for i, e := range next.Waiters {
		fmt.Fprintf(s.out, "    waiting  %-4s %-3s since %s", e.ID, take(e), ticketText(e.Token))
		if wait := next.ExpectedWait(i); wait > 0 {
			fmt.Fprintf(s.out, ", for about %v", wait)
		}
		s.signalled(e)
	}
	for _, q := range next.Facts().Queues {
		for _, e := range q.Waiters {
			fmt.Fprintf(s.out, "    for %-4s %-4s %-3s since %s\n", q.Name, e.ID, e.Mode, ticketText(e.Token))
		}
	}
}

func ticketText(token uint64) string {
	if n := token & MaxWaiters; n > 0 {
		return fmt.Sprintf("%d.%d", RevisionOf(token), n)
	}
	return strconv.FormatUint(RevisionOf(token), 10)
}

func parseTicket(text string) (uint64, error) {
	revision, number, _ := strings.Cut(text, ".")
	rev, err := strconv.ParseUint(revision, 10, 53)
	n := 0
	if err == nil && number != "" {
		n, err = strconv.Atoi(number)
	}
	return Ticket(rev, n), err
}

// signalled returns the end of an entry's line: its fields for conditions and elections.
func (s *script) signalled(e Entry) {
	if e.Signalled != "" {
		fmt.Fprintf(s.out, ", signalled (%s)", e.Signalled)
	}
	if e.LastSignal > 0 {
		fmt.Fprintf(s.out, ", last signal %d", e.LastSignal)
	}
	if e.Value.Set {
		fmt.Fprintf(s.out, ", says %q", e.Value.Data)
	}
	s.out.WriteByte('\n')
}
