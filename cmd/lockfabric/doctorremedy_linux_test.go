package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
)

// What doctor says is what to type: each command that it names is run as it stands
// by the stock nats command, and the finding is gone.
func TestDoctorRemediesCure(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	cfg := stream(t, js, "-locks").Config
	cfg.Subjects = append(cfg.Subjects, "more."+cfg.Name)
	cfg.Retention, cfg.Discard = jetstream.InterestPolicy, jetstream.DiscardOld
	cfg.MaxMsgsPerSubject, cfg.MaxAge, cfg.MaxMsgs, cfg.MaxBytes, cfg.MaxMsgSize = 5, time.Hour, 1000, 1<<20, 1<<20
	cfg.AllowDirect, cfg.AllowRollup, cfg.AllowAtomicPublish, cfg.NoAck, cfg.SubjectDeleteMarkerTTL = true, false, false, true, 0
	cfg.SubjectTransform = &jetstream.SubjectTransformConfig{Source: cfg.Subjects[0], Destination: "there.>"}
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	remade(t, js, "-leases", func(c *jetstream.StreamConfig) {
		c.DiscardNewPerSubject, c.AllowMsgTTL, c.SubjectDeleteMarkerTTL = true, false, 0
	})

	nats := stockNATS(t)
	wrong := func() (list []doctor.Finding) {
		for _, f := range examine(t, server.ClientURL(), "--no-probe").find("configuration") {
			if f.Status != doctor.OK {
				list = append(list, f)
			}
		}
		return list
	}
	left := wrong()
	if len(left) != 17 {
		t.Errorf("%d settings are wrong: %+v", len(left), left)
	}
	for len(left) > 0 { // in the order in which they are told; a cure may be that of another fault, too
		line, ok := strings.CutPrefix(left[0].Remedy, "change it: ")
		if !ok {
			t.Fatalf("no command in %+v", left[0])
		}
		confirmed(t, nats(), line)
		now := wrong()
		if slices.Contains(now, left[0]) || len(now) >= len(left) {
			t.Fatalf("not cured: %+v; left %+v", left[0], now)
		}
		left = now
	}
	d := examine(t, server.ClientURL())
	d.only("sync", "incarnation", "writes", "sequence")
	d.has("configuration", doctor.OK, "-locks")
	d.has("configuration", doctor.OK, "-leases")
}

// confirmed runs a command line in a shell on a terminal, with the stock nats
// command in its path, and says yes when it is asked.
func confirmed(t *testing.T, nats *exec.Cmd, line string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = append(nats.Environ(), "PATH="+filepath.Dir(nats.Path)+":/usr/bin:/bin", "NATS_URL="+server.ClientURL())
	c := newConsole(t, cmd)
	var seen strings.Builder
	for {
		b, err := c.out.ReadByte()
		if err != nil {
			break // it has ended
		}
		seen.WriteByte(b)
		switch {
		case strings.HasSuffix(seen.String(), "\x1b[6n"): // it asks where the cursor is
			c.keys("\x1b[1;1R")
		case strings.HasSuffix(seen.String(), "(y/N) "):
			c.keys("y\r")
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, seen.String())
	}
}
