package embedded

import (
	"fmt"
	"log/slog"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// plan is what a server is started or reloaded with: options that were checked,
// and what there is to warn of.
type plan struct {
	options  *natsserver.Options
	access   *access
	warnings []func(*slog.Logger)
}

type access struct {
	auth, tls bool
	internal  bool // Connect has a user of its own
	accounts  bool // or can't have one
}

func (c *config) plan(id *identity) (*plan, error) {
	o, err := c.serverOptions()
	if err != nil {
		return nil, err
	}
	p := &plan{options: o}
	if err := p.check(c); err != nil {
		return nil, err
	}
	tls := o.TLSConfig != nil && !o.AllowNonTLS
	asked, _ := asksClients(o)
	p.access = &access{
		auth:     asked || tls && verifies(o.TLSConfig),
		tls:      tls,
		internal: needsCredentials(o) && ownLogin(o),
		accounts: !ownLogin(o),
	}
	if p.access.internal {
		id.admit(o)
	}
	ownWays(o)
	return p, nil
}

// check refuses addresses that other hosts reach and where everybody is let in,
// and notes what is allowed but should be known.
func (p *plan) check(c *config) error {
	for _, l := range listeners(p.options) {
		switch {
		case l.loopback:
		case !l.auth && !c.allowExternal:
			return &OpenListenerError{Listener: l.name, Addr: l.addr, File: c.configFile, Reason: l.why}
		case l.auth && !l.tls:
			p.note(func(log *slog.Logger) {
				log.Warn("no TLS: passwords, and all that servers and clients say, can be read on the network", "listener", l.name, "url", l.addr)
			})
		}
	}
	if c.configFile == "" {
		return nil
	}
	for _, l := range monitors(p.options) {
		if !l.loopback && !c.allowExternal {
			p.note(func(log *slog.Logger) {
				log.Warn("monitoring asks nobody: who reaches it sees clients, buckets and names of locks; keep strangers from it, or write http: \"127.0.0.1:8222\"", "listener", l.name, "url", l.addr)
			})
		}
	}
	if !p.options.SyncAlways && !c.syncSet {
		interval := p.options.SyncInterval.Round(time.Millisecond)
		p.note(func(log *slog.Logger) {
			log.Warn("a power failure can lose locks that were granted; take sync_interval out of the file to sync every write", "sync_interval", interval.String())
		})
	}
	if f := p.options.LogFile; f != "" {
		p.note(func(log *slog.Logger) { log.Warn("log_file has no effect", "log_file", f) })
	}
	if p.options.Syslog || p.options.RemoteSyslog != "" {
		p.note(func(log *slog.Logger) { log.Warn("syslog and remote_syslog have no effect") })
	}
	return nil
}

func (p *plan) note(warn func(*slog.Logger)) { p.warnings = append(p.warnings, warn) }

func (p *plan) log(l *slog.Logger) {
	if l == nil {
		return
	}
	for _, warn := range p.warnings {
		warn(l)
	}
}

// ownWays keeps the server from what is the program's business: signals, and the
// log, which a reload would take over, too.
func ownWays(o *natsserver.Options) {
	o.NoSigs, o.NoLog, o.DisableJetStreamBanner = true, true, true
	o.LogFile, o.Syslog, o.RemoteSyslog = "", false, ""
	o.Debug, o.Trace, o.TraceVerbose = false, false, false
	o.Logtime, o.LogtimeUTC = false, false
}

// refused translates what the server says of its options.
func (c *config) refused(err error) error {
	if c.configFile != "" {
		return c.fileError("%v", err)
	}
	return fmt.Errorf("%w: %w", ErrStartFailed, err)
}
