"""A model, a loss and tasks of the user's own, meta-trained like the official settings.

learner = maml.train(model, task, loss="mse", update_lr=0.1, num_updates=3, logdir="logs/machines")
learner.adapt(x, y).predict(new_x)
"""
