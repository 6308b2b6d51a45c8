//go:build unix

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/testca"
)

// pageOf starts the page, and returns its address and the token in it.
func pageOf(t *testing.T, env []string, args ...string) (p *proc, at pageAt, token string) {
	t.Helper()
	cmd := lockfabric(t, append([]string{"--output", "json", "ui", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = append(cmd.Env, env...)
	p = start(t, cmd)
	text := p.object()
	if err := json.Unmarshal([]byte(text), &at); err != nil {
		t.Fatalf("%v: %s", err, p.err)
	}
	tb := outputTable(t, outputDoc(t), "ui")
	tb.check(t, "ui", text)
	tb.complete(t, at)
	at.URL, token, _ = strings.Cut(at.URL, "#token=")
	return p, at, token
}

// visitor is a browser of one page.
type visitor struct {
	t    *testing.T
	http http.Client
	url  string
	host string
	cook []*http.Cookie
}

func (v *visitor) ask(method, path, body string) *http.Response {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), testTimeout)
	v.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, v.url+path, strings.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	req.Host = v.host
	req.Header.Set("Content-Type", "application/json")
	for _, c := range v.cook {
		req.AddCookie(c)
	}
	resp, err := v.http.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func (v *visitor) login(token string) int {
	v.t.Helper()
	resp := v.ask(http.MethodPost, "api/login", fmt.Sprintf(`{"token":%q}`, token))
	v.cook = resp.Cookies()
	return resp.StatusCode
}

// A lock that is taken shows, with its holder, and goes when it is taken away.
func TestUI(t *testing.T) {
	t.Parallel()
	p, at, token := pageOf(t, nil, "--allow-release")
	v := &visitor{t: t, url: at.URL}
	if u, err := url.Parse(at.URL); err != nil || u.Hostname() != "127.0.0.1" || token == "" || at.Login || at.TLS {
		t.Errorf("%+v, %v", at, err)
	}
	if resp := v.ask(http.MethodGet, "api/events", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a session: %s", resp.Status)
	}
	if status := v.login(token); status != http.StatusNoContent {
		t.Fatalf("login: %d", status)
	}
	events := bufio.NewScanner(v.ask(http.MethodGet, "api/events", "").Body)
	// comes waits for an event with all these texts in it.
	comes := func(texts ...string) {
		t.Helper()
	lines:
		for events.Scan() {
			for _, text := range texts {
				if !strings.Contains(events.Text(), text) {
					continue lines
				}
			}
			return
		}
		t.Fatalf("the stream ended before %q: %v", texts, events.Err())
	}
	comes(`"fabric":"` + fabricName(t) + `"`)
	lock, err := manager(t).Acquire(t.Context(), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	comes(`"key":"a/b"`, `"state":"held"`, fmt.Sprintf(`"token":"%d"`, lock.Token()))
	comes(`"pid":`+fmt.Sprint(os.Getpid()), `"state":"live"`)
	resp := v.ask(http.MethodPost, "api/release", fmt.Sprintf(`{"key":"a/b","holders":[%q]}`, lock.ID()))
	if resp.StatusCode != http.StatusOK {
		t.Errorf("release: %s", resp.Status)
	}
	<-lock.Lost()
	comes(`"gone":["a/b"]`)
	p.signal(os.Interrupt)
	for events.Scan() { // ends
	}
	p.exits(0)
}

// The page of a server itself shows its locks, takes none away, and is no client that keeps it from ending.
func TestServeUI(t *testing.T) {
	t.Parallel()
	cmd := bare(t, "--output", "json", "--fabric", "shown", "serve", "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--ui", "127.0.0.1:0", "--idle-exit", "1s")
	p := start(t, cmd)
	ready := p.serving()
	at, token, _ := strings.Cut(ready.UI, "#token=")
	m, err := fabric.Connect(t.Context(), ready.URL, fabric.WithFabric("shown"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.Acquire(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	v := &visitor{t: t, url: at}
	if resp := v.ask(http.MethodGet, "api/key?name=k", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without the token: %s", resp.Status)
	}
	if status := v.login(token); status != http.StatusNoContent {
		t.Fatalf("login: %d", status)
	}
	var info fabric.Info
	if err := json.NewDecoder(v.ask(http.MethodGet, "api/key?name=k", "").Body).Decode(&info); err != nil || len(info.Holders) != 1 || info.Holders[0].ID != l.ID() {
		t.Errorf("%+v, %v", info, err)
	}
	if resp := v.ask(http.MethodGet, "api/waits", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("waits: %s", resp.Status)
	}
	if resp := v.ask(http.MethodPost, "api/release", fmt.Sprintf(`{"key":"k","holders":[%q]}`, l.ID())); resp.StatusCode != http.StatusForbidden {
		t.Errorf("release: %s", resp.Status)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	p.exits(0)
	if code, _, stderr := run(t, bare(t, "serve", "--store", t.TempDir(), "--ui", "0.0.0.0:0")); code != 64 || !strings.Contains(stderr, "serve --ui=0.0.0.0:0: other hosts reach this address") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// With a token of one's own, under a name, by TLS; and without the right to release.
func TestUIWithGivenToken(t *testing.T) {
	t.Parallel()
	const token = "0123456789abcdefghij"
	ca := testca.New(t)
	cert, key := ca.Issue(t, "server")
	pem, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(pem)
	file := tempFile(t, token+"\n")
	for _, c := range []struct {
		env  []string
		args []string
	}{
		{nil, []string{"--token-file", file, "--tls-cert", cert, "--tls-key", key, "--host", "locks.example"}},
		{[]string{uiTokenEnv + "=" + token}, nil},
	} {
		p, at, printed := pageOf(t, c.env, c.args...)
		if printed != "" || !at.Login || at.TLS != (c.args != nil) || strings.HasPrefix(at.URL, "https://") != at.TLS {
			t.Errorf("%+v, %s", at, printed)
		}
		v := &visitor{t: t, url: at.URL}
		if at.TLS {
			v.host = "locks.example"
			v.http.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}, DisableKeepAlives: true}
		}
		if status := v.login(token[1:]); status != http.StatusUnauthorized {
			t.Errorf("another token: %d", status)
		}
		if status := v.login(token); status != http.StatusNoContent || v.cook[0].Secure != at.TLS {
			t.Errorf("login: %d, %v", status, v.cook)
		}
		if resp := v.ask(http.MethodPost, "api/release", `{"key":"k","holders":["a.1"]}`); resp.StatusCode != http.StatusForbidden {
			t.Errorf("release: %s", resp.Status)
		}
		v.host = "evil.example"
		if resp := v.ask(http.MethodGet, "", ""); resp.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("under another name: %s", resp.Status)
		}
		p.signal(killable)
		p.exits(0)
		if strings.Contains(p.err.String(), token) {
			t.Errorf("the token is in the log: %s", p.err)
		}
	}
}

func TestUIRefusals(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"other hosts reach this address": {"--listen", "0.0.0.0:0"},
		"HOST:PORT":                      {"--listen", "localhost"},
		"--tls-cert":                     {"--tls-cert", "nowhere", "--tls-key", "nowhere"},
		"--token-file":                   {"--token-file", "nowhere"},
		"at least 20 characters":         {"--token-file", tempFile(t, "short")},
	} {
		if code, stdout, stderr := run(t, lockfabric(t, append([]string{"ui"}, args...)...)); code != 64 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d, %s, %s", args, code, stdout, stderr)
		}
	}
}
