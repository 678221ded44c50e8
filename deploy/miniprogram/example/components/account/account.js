const { client } = getApp();

Component({
  data: { state: "not logged in", answer: "" },

  lifetimes: {
    attached() {
      return this.call();
    },
  },

  methods: {
    // Nothing here speaks of logging in: the client does.
    call() {
      return this.show(client.request({ url: "/hello" }).then(({ data }) => data));
    },

    many() {
      const calls = Array.from({ length: 20 }, (_, i) => client.request({ url: `/hello/${i}` }));
      return this.show(Promise.all(calls).then((answers) => `${answers.length} answers`));
    },

    logout() {
      return client.logout().then(
        () => this.setData({ state: "not logged in", answer: "" }),
        (error) => this.tell(error),
      );
    },

    show(calls) {
      return calls
        .then((answer) => Promise.all([answer, client.session()]))
        .then(([answer, { expires_in }]) =>
          this.setData({
            answer: typeof answer === "string" ? answer : JSON.stringify(answer),
            state: `logged in for ${expires_in} s`,
          }),
        )
        .catch((error) => this.tell(error));
    },

    // The gateway says what to do: `login` and `retry` were tried already.
    tell(error) {
      const advice = { login: "cannot log in", retry: "try again later", none: "sorry" };
      const request = error.requestId ? ` (request ${error.requestId})` : "";
      this.setData({ answer: `${advice[error.action] || "sorry"}: ${error.error}${request}` });
    },
  },
});
