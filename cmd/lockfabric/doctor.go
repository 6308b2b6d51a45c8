package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
	"github.com/lockfabric/lockfabric/fabric"
)

type doctorCmd struct {
	Strict       bool          `help:"Exit with 78 also for warnings and unknowns."`
	Probes       int           `default:"20" from:"1" to:"1000" help:"How many round trips and writes to measure."`
	NoProbe      bool          `help:"Write nothing. Without it, a lock with a random name is acquired and released several times."`
	TTL          time.Duration `name:"ttl" default:"30s" from:"100ms" to:"24h0m0s" help:"TTL of your programs; the measured times are compared with it."`
	SystemServer string        `placeholder:"URL" env:"LOCKFABRIC_SYSTEM_SERVER" help:"Server for the system account, which can read the sync settings of all servers; can contain user:password. Default: the server of the locks."`
	SystemCreds  string        `placeholder:"FILE" env:"LOCKFABRIC_SYSTEM_CREDS" help:"Credentials file of a user of the system account."`
}

// Run examines the fabric and prints the report. The JSON is a doctor.Report.
func (d *doctorCmd) Run(ctx context.Context, c *cli, s *streams) error {
	to, err := c.target()
	if err != nil {
		return err
	}
	var now atomic.Value
	at, elapsed := func(what string) { now.Store(what) }, since("%s")
	erase := c.showLater(ctx, s, func() string { return fmt.Sprintf("doctor %s: %v", elapsed(), now.Load()) })
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
		opts.SyncAlways = true // startLocal does not change embedded's default
	case d.SystemServer != "" || d.SystemCreds != "":
		account, err := to.as(d.SystemServer, d.SystemCreds)
		if err == nil {
			opts.System, err = c.conn(ctx, s, account)
		}
		if opts.SystemError = err; err == nil {
			defer opts.System.Close()
		}
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

// findings writes a line for each finding, and the remedy below it.
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

// conn returns a connection to the given server, or to the local server if to is nil. It opens no fabric.
func (c *cli) conn(ctx context.Context, s *streams, to *target) (nc *nats.Conn, err error) {
	limited, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	open := func(ctx context.Context, servers string, opts ...nats.Option) (err error) {
		opts = append([]nats.Option{
			nats.Name("lockfabric doctor"),
			nats.ReconnectBufSize(-1), // a request that was given up must not be sent later
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { s.log.Debug("connection", "error", err) }),
		}, opts...)
		if deadline, ok := ctx.Deadline(); ok {
			// The servers are tried one after another, and each of them may not answer.
			opts = append(opts, nats.Timeout(max(time.Until(deadline)/time.Duration(1+strings.Count(servers, ",")), time.Millisecond)))
		}
		if nc, err = nats.Connect(servers, opts...); err != nil {
			return fmt.Errorf("%w: %w", fabric.ErrUnavailable, err)
		}
		return nil
	}
	if to == nil {
		err = c.connectLocal(limited, s, open)
		return nc, interrupted(ctx, err)
	}
	if err := open(limited, to.servers, to.options...); err != nil {
		return nil, to.explain(err, c.Timeout)
	}
	return nc, nil
}

// as returns the target with other credentials, and with another address if one is given. Its other settings stay.
func (t *target) as(servers, creds string) (*target, error) {
	other := &target{origin: "--system-server", setup: t.setup, who: "--system-creds"}
	other.setup.Forget()
	other.setup.Creds = creds
	if servers == "" {
		servers, other.origin = t.servers, t.origin
	}
	urls, inURL, err := parseServers(servers, other.origin)
	if err != nil {
		return nil, err
	}
	if creds == "" && inURL {
		other.who = "the credentials in " + other.origin
	}
	other.servers = joined(urls, creds == "")
	return other, other.prepare()
}

type permissionsCmd struct {
	Role   string `required:"" enum:"observer,client,coalescer,admin" help:"Role of the user: observer reads, client acquires locks, coalescer also executes operations of clients, admin also creates the buckets."`
	Shards int    `default:"1" help:"Number of the fabric's shards; 'lockfabric doctor' shows it."`
	As     string `enum:"config,nsc" default:"config" help:"Output: config for nats-server's configuration, nsc for arguments of nsc."`
}

// permissions is the JSON of permissions.
type permissions struct {
	Fabric    string   `json:"fabric"`
	Role      string   `json:"role"`
	Publish   []string `json:"publish"`   // subjects that the user may publish to
	Subscribe []string `json:"subscribe"` // subjects that the user may subscribe to
}

func (p *permissionsCmd) Run(c *cli, s *streams) error {
	all, err := fabric.Permissions(c.Fabric, fabric.Role(p.Role), cmp.Or(c.InboxPrefix, "_INBOX"), p.Shards)
	if err != nil {
		return err
	}
	v := permissions{Fabric: c.Fabric, Role: p.Role, Publish: []string{}, Subscribe: []string{}}
	for _, one := range all {
		if one.Subscribe {
			v.Subscribe = append(v.Subscribe, one.Subject)
		} else {
			v.Publish = append(v.Publish, one.Subject)
		}
	}
	if c.Output == "text" && p.As == "nsc" {
		_, err = fmt.Fprintf(s.out, "--allow-pub '%s' --allow-sub '%s'\n", strings.Join(v.Publish, ","), strings.Join(v.Subscribe, ","))
		return writeError(err)
	}
	return s.print(c.Output, v, func(w io.Writer) {
		fmt.Fprintf(w, "# Role %s of the fabric %q.\npermissions: {\n", p.Role, c.Fabric)
		for _, subscribe := range []bool{false, true} {
			fmt.Fprintf(w, "  %s: { allow: [\n", map[bool]string{false: "publish", true: "subscribe"}[subscribe])
			for _, one := range all {
				if one.Subscribe == subscribe {
					fmt.Fprintf(w, "    %q\t# %s\n", one.Subject, one.Why)
				}
			}
			fmt.Fprintln(w, "  ] }")
		}
		fmt.Fprintln(w, "}")
	})
}
