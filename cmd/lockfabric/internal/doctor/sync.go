package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// pingServers is answered by every server, to its system account only. The
// answers carry sync_always and sync_interval.
const pingServers = "$SYS.REQ.SERVER.PING.JSZ"

// quiet is how long nobody else answers once all have.
const quiet = 750 * time.Millisecond

const setSync = "set 'sync_interval: always' in the jetstream block of each server's configuration, and restart them one by one; " +
	"until then a power failure can lose locks that were granted"

const askSystem = "ask as the system account: --system-server nats://user:password@host:4222, or --system-creds FILE; " +
	"or look for sync_interval in the jetstream block of each server's configuration"

type serverAnswer struct {
	Server struct {
		Name    string `json:"name"`
		Cluster string `json:"cluster"`
		Version string `json:"ver"`
	} `json:"server"`
	Data struct {
		Disabled bool `json:"disabled"`
		Config   struct {
			SyncInterval time.Duration `json:"sync_interval"`
			SyncAlways   bool          `json:"sync_always"`
		} `json:"config"`
	} `json:"data"`
	Error *struct {
		Description string `json:"description"`
	} `json:"error"`
}

func (e *exam) sync(ctx context.Context) {
	r := e.report
	if e.SyncAlways {
		r.Cluster.Servers = append(r.Cluster.Servers, Member{Name: r.Server.Name, Version: r.Server.Version, SyncAlways: true})
		r.ok(checkSync, r.Server.Name, "every write is on disk before it is acknowledged")
		return
	}
	if e.SystemError != nil {
		r.unknown(checkSync, "", "the system account can't be asked: "+e.SystemError.Error(), "check --system-server and --system-creds")
		return
	}
	nc := e.System
	if nc == nil {
		nc = e.nc
	}
	answers, err := ask(ctx, e, e.System == nil && e.rights.lacks(pingServers), func(ctx context.Context) ([]serverAnswer, error) {
		return everyServer(ctx, nc)
	})
	switch {
	case err == nil:
	case e.System == nil:
		r.unknown(checkSync, "", "only the system account sees when the servers write to disk", askSystem)
		return
	default:
		r.unknown(checkSync, "", "these credentials are not those of a system account, or no server answers them: "+err.Error(), askSystem)
		return
	}
	slices.SortFunc(answers, func(a, b serverAnswer) int { return cmp.Compare(a.Server.Name, b.Server.Name) })
	for _, a := range answers {
		if a.Server.Cluster == r.Cluster.Name && (a.Server.Cluster != "" || a.Server.Name == r.Server.Name) {
			e.member(a)
		}
	}
	if len(r.Cluster.Servers) == 0 {
		r.unknown(checkSync, "", "none of the servers that answer is of this cluster and has JetStream", askSystem)
	}
}

func (e *exam) member(a serverAnswer) {
	r, name := e.report, a.Server.Name
	if name != r.Server.Name {
		e.version(name, a.Server.Version)
	}
	if a.Error != nil {
		r.unknown(checkSync, name, "it answers: "+a.Error.Description, "look at its log")
		return
	}
	if a.Data.Disabled {
		return // it stores nothing
	}
	m := Member{Name: name, Version: a.Server.Version, SyncAlways: a.Data.Config.SyncAlways}
	if m.SyncAlways {
		r.ok(checkSync, name, "every write is on disk before it is acknowledged")
	} else {
		m.SyncInterval = a.Data.Config.SyncInterval
		r.warn(checkSync, name, fmt.Sprintf("writes are acknowledged up to %v before they are on disk", m.SyncInterval), setSync)
	}
	r.Cluster.Servers = append(r.Cluster.Servers, m)
}

// everyServer asks all servers and returns who answered until they are quiet.
func everyServer(ctx context.Context, nc *nats.Conn) ([]serverAnswer, error) {
	sub, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(pingServers, sub.Subject, nil); err != nil {
		return nil, err
	}
	var all []serverAnswer
	for wait := stepTimeout; ; wait = quiet {
		one, cancel := context.WithTimeout(ctx, wait)
		msg, err := sub.NextMsgWithContext(one)
		cancel()
		if err != nil {
			if len(all) > 0 && errors.Is(err, context.DeadlineExceeded) {
				return all, nil
			}
			return nil, err
		}
		var a serverAnswer
		if err := json.Unmarshal(msg.Data, &a); err != nil {
			return nil, fmt.Errorf("an answer can't be read: %w", err)
		}
		all = append(all, a)
	}
}
