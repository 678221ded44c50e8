const { client } = getApp();

Component({
  data: { state: "未登录", answer: "" },

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
      return this.show(Promise.all(calls).then((answers) => `收到 ${answers.length} 个响应`));
    },

    // The service gets the number for the code, from the gateway: see deploy/services.
    phone(event) {
      return this.show(client.phoneNumber(event, { url: "/phone" }));
    },

    logout() {
      return client.logout().then(
        () => this.setData({ state: "未登录", answer: "" }),
        (error) => this.tell(error),
      );
    },

    show(calls) {
      return calls
        .then((answer) => Promise.all([answer, client.session()]))
        .then(([answer, { expires_in }]) =>
          this.setData({
            answer: typeof answer === "string" ? answer : JSON.stringify(answer),
            state: `已登录，${expires_in} 秒后过期`,
          }),
        )
        .catch((error) => this.tell(error));
    },

    // The gateway says what to do: `login` and `retry` were tried already.
    tell(error) {
      const reasons = { no_phone_code: "没有得到手机号授权", invalid_phone_code: "请再点一次“获取手机号”" };
      const advice = { login: "登录失败", retry: "请稍后再试", none: "出错了" };
      const text = reasons[error.error] || advice[error.action] || "出错了";
      const request = error.requestId ? `（请求 ID：${error.requestId}）` : "";
      this.setData({ answer: `${text}：${error.error}${request}` });
    },
  },
});
