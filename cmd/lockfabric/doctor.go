package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
	"github.com/lockfabric/lockfabric/internal/lease"
)

const maxProbes = 1000

type doctorCmd struct {
	Strict       bool          `help:"Exit with 78 for warnings, and for what could not be found out, too."`
	Probes       int           `default:"20" help:"How many round trips and writes to measure."`
	NoProbe      bool          `help:"Write nothing: else a lock of a random name is acquired and released some times."`
	TTL          time.Duration `name:"ttl" default:"30s" help:"TTL that your programs use; what is measured is held to it."`
	SystemServer string        `placeholder:"URL" env:"LOCKFABRIC_SYSTEM_SERVER" help:"Address for the system account, which sees when servers write to disk; may hold user:password. The server that locks are on unless given."`
	SystemCreds  string        `placeholder:"FILE" env:"LOCKFABRIC_SYSTEM_CREDS" help:"Credentials file of a user of the system account."`
}

func (*doctorCmd) Help() string {
	return "Nothing is changed: no bucket is created, and with --no-probe nothing is written at all. " +
		"docs/doctor.md explains every finding.\n\n" +
		"Exit code: 0: no problem; 78: a problem, and with --strict also a warning or an unknown; 69: no server; 64: usage."
}

// Run examines and reports. The JSON is a doctor.Report.
func (d *doctorCmd) Run(ctx context.Context, c *cli, s *streams) error {
	if err := d.validate(); err != nil {
		return err
	}
	to, err := c.target()
	if err != nil {
		return err
	}
	at, erase := func(string) {}, func() {}
	if c.Output == "text" && s.status.usable() {
		at, erase = startChecks(ctx, s.status)
	}
	defer erase()
	at("connecting")
	nc, err := c.conn(ctx, s, to)
	if err != nil {
		return err
	}
	defer nc.Close()
	opts := doctor.Options{Fabric: c.Fabric, Probes: d.Probes, NoProbe: d.NoProbe, TTL: d.TTL, Strict: d.Strict, Progress: at, Logger: s.log}
	switch {
	case to == nil:
		opts.SyncAlways = true // startLocal leaves embedded's default
	case d.SystemServer != "" || d.SystemCreds != "":
		opts.System, opts.SystemError = d.system(ctx, c, s, to)
	}
	if opts.System != nil {
		defer opts.System.Close()
	}
	report, err := doctor.Run(ctx, nc, opts)
	erase()
	if err != nil {
		return err
	}
	if err := s.print(c.Output, report, func(w io.Writer) { findings(w, report) }); err != nil {
		return err
	}
	if !report.OK {
		return &exitError{code: exitDoctor, cause: fmt.Errorf("doctor: %d problem(s), %d warning(s), %d unknown",
			report.Count(doctor.Problem), report.Count(doctor.Warning), report.Count(doctor.Unknown))}
	}
	return nil
}

func (d *doctorCmd) validate() error {
	switch {
	case d.Probes < 1 || d.Probes > maxProbes:
		return usageError("doctor --probes=%d: give 1 to %d", d.Probes, maxProbes)
	case d.TTL < lease.MinTTL || d.TTL > lease.MaxTTL:
		return usageError("doctor --ttl=%v: give %v to %v", d.TTL, lease.MinTTL, lease.MaxTTL)
	}
	return nil
}

// findings writes one line for each finding, and what to do under those that need it.
func findings(w io.Writer, r *doctor.Report) {
	fmt.Fprintln(w, "STATUS\tCHECK\tOF\tFINDING")
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Status, f.Check, orDash(f.Subject), oneLine(message(errors.New(f.Detail))))
		if f.Remedy != "" {
			fmt.Fprintf(w, "\t\t\t-> %s\n", oneLine(f.Remedy))
		}
	}
	if len(r.Cluster.Servers) > 0 {
		fmt.Fprintln(w)
	}
	for _, m := range r.Cluster.Servers {
		fmt.Fprintf(w, "server %s: nats-server %s, sync %s\n", printable(m.Name), printable(m.Version), m.Sync())
	}
}
