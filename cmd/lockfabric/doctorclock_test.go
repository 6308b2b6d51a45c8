//go:build unix

package main

import (
	"encoding/json"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
)

// A server whose clock is an hour slow. What it says of the streams is what the
// tests' server says, but for the time.
func TestDoctorClock(t *testing.T) {
	t.Parallel()
	made(t, server.ClientURL())
	examine(t, server.ClientURL(), "--no-probe").has("clock", doctor.OK, "-locks", "give or take")
	from, _ := dialTo(t, server.ClientURL())
	srv := testserver.Start(t, &natsserver.Options{})
	nc, _ := dialTo(t, srv.ClientURL())
	_, err := nc.Subscribe("$JS.API.STREAM.INFO.*", func(msg *nats.Msg) {
		reply, err := from.Request(msg.Subject, msg.Data, testTimeout)
		var answer map[string]any
		if err == nil {
			err = json.Unmarshal(reply.Data, &answer)
		}
		if err != nil {
			t.Error(err)
			return
		}
		answer["ts"] = time.Now().Add(-time.Hour)
		data, _ := json.Marshal(answer)
		_ = msg.Respond(data)
	})
	if err == nil {
		_, err = nc.Subscribe("$JS.API.INFO", func(msg *nats.Msg) { _ = msg.Respond([]byte(`{"api":{"level":5}}`)) })
	}
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	examine(t, srv.ClientURL(), "--no-probe").has("clock", doctor.Warning, "-locks", "behind this host's", "locks do not depend on it", "NTP")
}
