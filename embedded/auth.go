package embedded

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// inProcessOnly restricts a user to connections inside the process. The server defines this name.
const inProcessOnly = "IN_PROCESS"

// The server treats a password with this prefix as a bcrypt hash. An incomplete hash would match no password.
var (
	bcryptPrefix = regexp.MustCompile(`^\$2[abxy]\$\d{2}\$`)
	bcryptHash   = regexp.MustCompile(`^\$2[abxy]\$\d{2}\$[./A-Za-z0-9]{53}$`)
)

// WithToken makes the listener require this secret from every client: pass it to nats.Token, or write it before the
// host in the URL, "nats://token@host:port". A bcrypt hash of the secret is also accepted. Without this option,
// WithUser, WithNKey and WithClientCA, everybody who can reach the listener, for example every user of this host, can
// acquire and break every lock. It can't be combined with WithUser or WithNKey.
func WithToken(token string) Option {
	return func(c *config) error {
		if err := checkSecret("WithToken", token); err != nil {
			return err
		}
		return set(&c.own.Authorization, token, token != "", "WithToken: the token is empty; leave the option out for a server that is open to everybody")
	}
}

// WithUser admits clients with this name and password; see nats.UserInfo. It can be given several times with different
// names, and together with WithNKey. Like nats-server, it also accepts the bcrypt hash of the password: "$2a$11$...".
// All users have all permissions; for fewer permissions, see WithConfigFile.
func WithUser(name, password string) Option {
	return func(c *config) error {
		return c.addUser("WithUser", &natsserver.User{Username: name, Password: password})
	}
}

// WithSystemUser admits clients with this name and password to the system account, for one request only: the state and
// settings of JetStream on all servers of the cluster, which 'lockfabric doctor' needs. Such a client can neither read
// nor change anything else, in particular no locks. The option does not decide who may acquire locks; WithUser,
// WithNKey and WithClientCA do. It can't be combined with WithToken.
func WithSystemUser(name, password string) Option {
	return func(c *config) error {
		return c.addUser("WithSystemUser", &natsserver.User{
			Username: name, Password: password, Permissions: onlyLooks(), Account: natsserver.NewAccount(natsserver.DEFAULT_SYSTEM_ACCOUNT),
		})
	}
}

// onlyLooks returns the permissions of a system user. All permissions of the system account would be too many: they
// allow to purge other accounts, and to see the traffic between replicas.
func onlyLooks() *natsserver.Permissions {
	return &natsserver.Permissions{
		Publish:   &natsserver.SubjectPermission{Allow: []string{"$SYS.REQ.SERVER.PING.JSZ"}},
		Subscribe: &natsserver.SubjectPermission{Allow: []string{nats.InboxPrefix + ">"}},
	}
}

func (c *config) addUser(option string, u *natsserver.User) error {
	switch {
	case !isName(u.Username):
		return invalid("%s: name %q: give a name without spaces", option, u.Username)
	case u.Password == "":
		return invalid("%s(%q): the password is empty; give one, or its bcrypt hash", option, u.Username)
	case slices.ContainsFunc(c.own.Users, func(o *natsserver.User) bool { return o.Username == u.Username }):
		return invalid("%s(%q): the name is given twice; give each name once", option, u.Username)
	}
	c.own.Users = append(c.own.Users, u)
	return checkSecret(option, u.Password)
}

// WithNKey admits clients that prove to have the private key of one of these public user keys ("U..."); see nats.Nkey
// and nats.NkeyOptionFromSeed. It can be given several times. The server never learns a secret.
func WithNKey(publicKeys ...string) Option {
	return func(c *config) error {
		if len(publicKeys) == 0 {
			return invalid("WithNKey: no key; give the public key of a user, it begins with U")
		}
		for i, k := range publicKeys {
			switch {
			case strings.HasPrefix(k, "S"): // it is a secret, so it must not be in the message
				return invalid("WithNKey: key %d is a seed, which is a secret; give the public key that belongs to it, it begins with U", i+1)
			case !nkeys.IsValidPublicUserKey(k):
				return invalid("WithNKey: key %d is not the public key of a user; such a key begins with U", i+1)
			case slices.ContainsFunc(c.own.Nkeys, func(n *natsserver.NkeyUser) bool { return n.Nkey == k }):
				return invalid("WithNKey: %s is given twice; give each key once", k)
			}
			c.own.Nkeys = append(c.own.Nkeys, &natsserver.NkeyUser{Nkey: k})
		}
		return nil
	}
}

func checkSecret(option, secret string) error {
	if bcryptPrefix.MatchString(secret) && !bcryptHash.MatchString(secret) {
		return invalid("%s: the secret begins like a bcrypt hash but is none; give the whole hash", option)
	}
	return nil
}

// addSystemAccount makes one account of those of the system users.
func addSystemAccount(o *natsserver.Options) error {
	system, locks := natsserver.NewAccount(natsserver.DEFAULT_SYSTEM_ACCOUNT), len(o.Nkeys) > 0
	for _, u := range o.Users {
		if u.Account == nil {
			locks = true
		} else {
			u.Account, o.SystemAccount = system, system.Name
		}
	}
	if o.SystemAccount == "" {
		return nil
	}
	o.Accounts = []*natsserver.Account{system}
	if locks {
		// Without this, the server admits clients without a name. Only a configuration can set it.
		if err := o.ProcessConfigString("authorization: {}"); err != nil {
			return fmt.Errorf("%w: %w", ErrStartFailed, err)
		}
	}
	return nil
}

// identity is the user of Server.Connect if clients need credentials: a new key, valid inside the process only.
type identity struct {
	public string
	pair   nkeys.KeyPair
}

func newIdentity() (*identity, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	public, err := pair.PublicKey()
	return &identity{public: public, pair: pair}, err
}

func (id *identity) option() nats.Option { return nats.Nkey(id.public, id.pair.Sign) }

// credentialsGiven reports whether a caller of Connect brings its own credentials.
func credentialsGiven(opts []nats.Option) (bool, error) {
	o := nats.GetDefaultOptions()
	for _, f := range opts {
		if f == nil {
			continue
		}
		if err := f(&o); err != nil {
			return false, fmt.Errorf("embedded: connect: %w", err)
		}
	}
	return o.User != "" || o.Token != "" || o.Nkey != "" || o.UserJWT != nil || o.UserInfo != nil || o.TokenHandler != nil, nil
}

// needsCredentials reports whether the server requires credentials from clients.
func needsCredentials(o *natsserver.Options) bool {
	return o.Username != "" || o.Authorization != "" || len(o.Users)+len(o.Nkeys) > 0 || operated(o)
}

// ownLogin reports whether Connect can have its own user. If a name or token is for websocket or MQTT only, the server
// accepts no other users.
func ownLogin(o *natsserver.Options) bool {
	return !hasAccounts(o) && o.Websocket.Username+o.Websocket.Token+o.MQTT.Username+o.MQTT.Token == ""
}

// operated reports whether accounts and users are JWTs of an operator.
func operated(o *natsserver.Options) bool { return len(o.TrustedOperators)+len(o.TrustedKeys) > 0 }

// hasAccounts reports whether clients are in other accounts than the default one, or a service decides this.
func hasAccounts(o *natsserver.Options) bool {
	if operated(o) || o.AuthCallout != nil {
		return true
	}
	return slices.ContainsFunc(o.Accounts, func(a *natsserver.Account) bool { return !isSystemAccount(o, a) })
}

func isSystemAccount(o *natsserver.Options, a *natsserver.Account) bool {
	return a != nil && (a.Name == o.SystemAccount || a.Name == natsserver.DEFAULT_SYSTEM_ACCOUNT)
}

// routeAuth is how the servers of a cluster authenticate each other.
type routeAuth struct {
	user, password string
	tls            tlsFiles
}

// WithClusterAuth makes the servers of a cluster require this name and password from each other. All servers need the
// same. A route with its own user, "nats-route://user:password@host:port", keeps it. If all routes have the same user,
// this option can be omitted. The password must be given in plain text, not as a hash, because this server sends it to
// the others. Needs WithCluster.
func WithClusterAuth(user, password string) Option {
	return func(c *config) error {
		switch {
		case !isName(user):
			return invalid("WithClusterAuth: name %q: give a name without spaces", user)
		case password == "":
			return invalid("WithClusterAuth: the password is empty")
		case bcryptPrefix.MatchString(password):
			return invalid("WithClusterAuth: the password is a bcrypt hash; give the password itself, the other servers ask for it")
		}
		c.routeAuth.user, c.routeAuth.password = user, password
		return nil
	}
}

// WithClusterTLS makes the servers of a cluster use TLS with each other, and require a certificate signed by one of the
// authorities in caFile. A certificate must be valid for both ends of a connection, and must contain the host name that
// the routes use for this server. All files are PEM. Needs WithCluster. Either all servers of the cluster use it or
// none.
func WithClusterTLS(certFile, keyFile, caFile string) Option {
	return func(c *config) error {
		all := certFile != "" && keyFile != "" && caFile != ""
		return set(&c.routeAuth.tls, tlsFiles{certFile, keyFile, caFile}, all, "WithClusterTLS: give three files, the certificate, its key, and the authorities")
	}
}

// apply completes the cluster's options, which already contain the routes.
func (a routeAuth) apply(o *natsserver.Options) error {
	if a.tls.cert != "" {
		t, err := a.tls.load("WithClusterTLS")
		if err != nil {
			return err
		}
		o.Cluster.TLSConfig, o.Cluster.TLSTimeout = t, tlsTimeout
	}
	login, err := a.login(o.Routes)
	if err != nil || login == nil {
		return err
	}
	o.Cluster.Username = login.Username()
	o.Cluster.Password, _ = login.Password()
	for _, r := range o.Routes {
		if r.User == nil {
			r.User = login
		}
	}
	return nil
}

// login returns the name and password that this server requires: those of the option, or else those of the routes.
func (a routeAuth) login(routes []*url.URL) (*url.Userinfo, error) {
	if a.user != "" {
		return url.UserPassword(a.user, a.password), nil
	}
	var found *url.Userinfo
	for _, r := range routes {
		if r.User == nil {
			continue
		}
		if _, ok := r.User.Password(); !ok || r.User.Username() == "" {
			return nil, invalid("WithCluster: the route to %s names a user without a password; give both, or use WithClusterAuth", r.Host)
		}
		if found != nil && found.String() != r.User.String() {
			return nil, invalid("WithCluster: the routes name different users; say with WithClusterAuth which one this server asks for")
		}
		found = r.User
	}
	return found, nil
}

// tlsTimeout limits a handshake, in seconds. The server's default of two is too short for a busy host.
const tlsTimeout = 5

// tlsFiles are the files of one listener. Start and Reload read them.
type tlsFiles struct {
	cert, key, ca string
}

// WithTLS makes the client listener require TLS, with this certificate (its chain may follow in the file) and its key,
// both in PEM. ClientURL then starts with "tls://". Connections inside the process do not need TLS. Needs WithListen.
func WithTLS(certFile, keyFile string) Option {
	return func(c *config) error {
		if certFile == "" || keyFile == "" {
			return invalid("WithTLS: give two files, the certificate and its key")
		}
		c.tls.cert, c.tls.key = certFile, keyFile
		return nil
	}
}

// WithClientCA makes the client listener require a certificate signed by one of the authorities in caFile (PEM). This
// is authentication by itself; users, nkeys or a token can be required in addition. Needs WithTLS.
func WithClientCA(caFile string) Option {
	return func(c *config) error {
		return set(&c.tls.ca, caFile, caFile != "", "WithClientCA: the file is empty; name one with the certificates of the authorities")
	}
}

// load reads the files. With authorities, the peer needs one of their certificates, whichever side connects.
func (f tlsFiles) load(option string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, invalid("%s: certificate %s and key %s: %w", option, f.cert, f.key, err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if f.ca == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, invalid("%s: authorities: %w", option, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, invalid("%s: authorities: %s has no certificate in PEM", option, f.ca)
	}
	cfg.ClientCAs, cfg.RootCAs = pool, pool
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	return cfg, nil
}
